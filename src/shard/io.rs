//! The seam to the sockets: everything that says how bytes and wake-ups cross the kernel.
//!
//! Small on purpose, so that another way to drive sockets can take its place: accept, receive into
//! a slice, send several slices, read a descriptor empty, be woken from another thread.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use glommio::io::BufferedFile;
use glommio::net::{TcpListener, TcpStream, UnixStream};
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, TcpKeepalive, Type};

/// Connections that the kernel queues before they are accepted.
const BACKLOG: i32 = 1024;

/// A listening socket. Several may share an address; the kernel spreads connections over them.
pub(super) struct Listener(TcpListener);

/// Makes a listening socket that shares its address with others of this process.
pub(super) fn listen(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// That nobody listens on an address. Sockets that share a port would let two servers of one user
/// share it too, each with a part of the connections.
pub(super) fn check_free(address: SocketAddr) -> io::Result<()> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

/// The address that a listening socket has.
pub(super) fn local_address(listener: &OwnedFd) -> io::Result<SocketAddr> {
    SockRef::from(listener)
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::other("not an internet address"))
}

impl Listener {
    pub(super) fn new(listener: OwnedFd) -> Listener {
        // SAFETY: the descriptor is a listening TCP socket that nobody else owns.
        Listener(unsafe { TcpListener::from_raw_fd(listener.into_raw_fd()) })
    }

    pub(super) async fn accept(&self, keepalive_idle: Duration) -> io::Result<Socket> {
        let stream = self.0.accept().await?;
        let fd = stream.as_raw_fd();
        // SAFETY: the stream is alive to the end of this function.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let socket = SockRef::from(&borrowed);
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive_idle))?;
        Ok(Socket { fd, stream })
    }
}

/// A connection.
pub(super) struct Socket {
    stream: TcpStream,
    fd: RawFd,
}

/// The ways to touch a connection from beside the task that owns it. Not to be used after the
/// [`Socket`] is gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handle(RawFd);

impl Socket {
    pub(super) fn handle(&self) -> Handle {
        Handle(self.fd)
    }

    /// Receives into `buffer`; 0 is the end.
    pub(super) async fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer).await
    }

    /// Sends a part of `slices`; returns how many bytes.
    pub(super) async fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        std::future::poll_fn(|cx| Pin::new(&mut self.stream).poll_write_vectored(cx, slices)).await
    }

    /// Tells the peer that nothing more comes, and waits for its end for a bounded time, so that
    /// what was sent last is not lost to a reset.
    pub(super) async fn close(mut self) {
        if self.stream.shutdown(Shutdown::Write).await.is_err() {
            return;
        }
        let mut sink = [0; 512];
        let drained =
            async { while matches!(self.stream.read(&mut sink).await, Ok(n) if n > 0) {} };
        futures_lite::future::or(drained, sleep(Duration::from_millis(500))).await;
    }
}

impl Handle {
    /// Whether the peer has gone, as far as can be seen without taking bytes.
    pub(super) fn is_gone(self) -> bool {
        // SAFETY: the connection's entry is removed before its socket is closed.
        let fd = unsafe { BorrowedFd::borrow_raw(self.0) };
        let mut byte = [0_u8; 1];
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        match rustix::net::recv(fd, &mut byte, flags) {
            Ok((count, _)) => count == 0,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            Err(_) => true,
        }
    }

    /// Makes the owner's receive end.
    pub(super) fn stop_receiving(self) {
        // SAFETY: the connection's entry is removed before its socket is closed.
        let fd = unsafe { BorrowedFd::borrow_raw(self.0) };
        // The peer may have gone in the meantime; then receiving has ended anyway.
        let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Read);
    }
}

/// A device's doorbell.
pub(super) struct Doorbell(RefCell<UnixStream>);

impl Doorbell {
    pub(super) fn new(doorbell: OwnedFd) -> Doorbell {
        // SAFETY: the descriptor is a connected Unix stream socket that nobody else owns.
        Doorbell(RefCell::new(unsafe { UnixStream::from_raw_fd(doorbell.into_raw_fd()) }))
    }

    /// Waits until it rings; false when it never will again.
    pub(super) async fn rung(&self) -> bool {
        let mut rings = [0; 64];
        let read = std::future::poll_fn(|cx| {
            Pin::new(&mut *self.0.borrow_mut()).poll_read(cx, &mut rings)
        });
        matches!(read.await, Ok(count) if count > 0)
    }
}

/// The sending half of a wake-up from other threads.
#[derive(Clone, Debug)]
pub(super) struct Bell(Arc<OwnedFd>);

impl Bell {
    /// A pair of ends: one to ring from anywhere, one for the shard to wait on.
    pub(super) fn pair() -> io::Result<(Bell, OwnedFd)> {
        let (ring, wait) = std::os::unix::net::UnixStream::pair()?;
        ring.set_nonblocking(true)?;
        wait.set_nonblocking(true)?;
        Ok((Bell(Arc::new(ring.into())), wait.into()))
    }

    pub(super) fn ring(&self) {
        // A full socket is a bell that rings already; a closed one, a shard that has ended.
        let _ = rustix::net::send(&*self.0, &[1], rustix::net::SendFlags::NOSIGNAL);
    }
}

/// Waits on the reactor.
pub(super) async fn sleep(time: Duration) {
    glommio::timer::sleep(time).await;
}

/// Where tasks let others go first.
///
/// A task gives up the core by waiting on the reactor, which `yield_if_needed` does not do: see
/// `connection`. A timer would do, but takes a millisecond; a read of an always readable file takes
/// microseconds.
pub(super) struct Turnstile(BufferedFile);

impl Turnstile {
    pub(super) async fn open() -> io::Result<Turnstile> {
        Ok(Turnstile(BufferedFile::open("/dev/zero").await?))
    }

    /// Lets every other task and socket of this shard have its turn.
    pub(super) async fn pass(&self) {
        if let Err(error) = self.0.read_at(0, 1).await {
            tracing::warn!(%error, "cannot wait on the reactor");
        }
    }
}

/// Sends all of `head` and `body`, letting others go first after each `slice_bytes`.
pub(super) async fn send_all(
    turnstile: &Turnstile,
    socket: &mut Socket,
    head: &[u8],
    body: &[u8],
    slice_bytes: usize,
) -> io::Result<()> {
    let (mut head, mut body) = (head, body);
    let mut budget = slice_bytes;
    while !head.is_empty() || !body.is_empty() {
        let part = &body[..body.len().min(slice_bytes)];
        let sent = match head {
            [] => socket.send(&[IoSlice::new(part)]).await?,
            head => socket.send(&[IoSlice::new(head), IoSlice::new(part)]).await?,
        };
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let of_head = sent.min(head.len());
        head = &head[of_head..];
        body = &body[sent - of_head..];
        budget = budget.saturating_sub(sent);
        if budget == 0 && !body.is_empty() {
            turnstile.pass().await;
            budget = slice_bytes;
        }
    }
    Ok(())
}
