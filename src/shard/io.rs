//! The seam to the sockets: everything that says how bytes and wake-ups cross the kernel.
//!
//! Small on purpose: accept, receive into a buffer of the ring's or straight to where bytes belong,
//! send, read a bell empty, be woken from another thread. How it is done is `ring`'s and
//! `driver`'s.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, Range};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Wake;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, TcpKeepalive, Type};
use tracing::debug;

use super::driver::Reactor;
use super::ring::{self, Accept, Chunk, Completion, Keep};
use super::tls::Tls;
use crate::device::shared::Landing;
use crate::engine::Output;
use crate::identity::PeerTls;

/// Connections that the kernel queues before they are accepted.
const BACKLOG: i32 = 1024;
/// How long a closed connection is read for the peer's end.
const LINGER: Duration = Duration::from_millis(500);
/// Room for what is received where the ring has no buffer left.
const SPARE_BYTES: usize = 16 << 10;

/// What is received at once of a TLS connection where more has come than a buffer of the ring's
/// holds: 16 records.
const TLS_BYTES: usize = 256 << 10;

/// From how many bytes of a long blob on a shard is woken for them. Its waking up costs the sender
/// time, some microseconds on a virtual machine, and the sender is who a long blob waits for.
const LOW_WATER_BYTES: usize = 512 << 10;
/// Where so little is received at once, a shard is woken for every byte.
const LOW_WATER_BYTES_MIN: usize = 128 << 10;

/// The congestion control of connections within this machine: any that does not pace. One that does
/// (BBR) holds back what it sends, and loses to its timers what there is no wire to gain from.
/// Everybody may choose this one (`tcp(7)`, `tcp_allowed_congestion_control`).
const UNPACED: &[u8] = b"reno";

/// Makes a listening socket that shares its address with others of this process.
pub(super) fn listen(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
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

fn do_not_pace(socket: &SockRef<'_>) {
    if let Err(error) = socket.set_tcp_congestion(UNPACED) {
        debug!(%error, "the system's congestion control stays");
    }
}

/// A listening socket. Several may share an address; the kernel spreads connections over them.
pub(super) struct Listener {
    reactor: Rc<Reactor>,
    socket: Rc<OwnedFd>,
    accepting: Option<Accept>,
}

impl Listener {
    pub(super) fn new(reactor: &Rc<Reactor>, listener: OwnedFd) -> Listener {
        Listener { reactor: Rc::clone(reactor), socket: Rc::new(listener), accepting: None }
    }

    /// The next connection. One whose peer takes nothing of what is sent for `send_pause_max` ends.
    pub(super) async fn accept(
        &mut self,
        keepalive_idle: Duration,
        send_pause_max: Duration,
    ) -> io::Result<Socket> {
        loop {
            let (ring, socket) = (self.reactor.ring(), &self.socket);
            let accepting = self.accepting.get_or_insert_with(|| ring.accept(socket));
            let accepted = accepting.next().await;
            if accepted.is_err() {
                self.accepting = None;
            }
            // What cannot be set up has gone already, which is its peer's affair and no reason for
            // others to wait.
            match self.set_up(accepted?, keepalive_idle, send_pause_max) {
                Ok(socket) => return Ok(socket),
                Err(error) => debug!(%error, "gone before it was accepted"),
            }
        }
    }

    fn set_up(
        &self,
        accepted: OwnedFd,
        keepalive_idle: Duration,
        send_pause_max: Duration,
    ) -> io::Result<Socket> {
        let socket = SockRef::from(&accepted);
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive_idle))?;
        socket.set_tcp_user_timeout(Some(send_pause_max))?;
        let peer = socket.peer_addr()?.as_socket().map(|peer| peer.ip());
        let copies = peer.is_none_or(|peer| peer.to_canonical().is_loopback());
        if copies {
            do_not_pace(&socket);
        }
        Ok(Socket { peer, ..Socket::new(&self.reactor, accepted, !copies) })
    }
}

/// Connects to another server.
pub(super) async fn connect(
    reactor: &Rc<Reactor>,
    address: SocketAddr,
    keepalive_idle: Duration,
) -> io::Result<Socket> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive_idle))?;
    let copies = address.ip().to_canonical().is_loopback();
    if copies {
        do_not_pace(&SockRef::from(&socket));
    }
    let fd = Rc::new(OwnedFd::from(socket));
    reactor.ring().connect(&fd, address).await.result?;
    Ok(Socket { peer: Some(address.ip()), ..Socket::with(reactor, fd, !copies) })
}

/// A connection.
pub(super) struct Socket {
    reactor: Rc<Reactor>,
    pub(super) fd: Rc<OwnedFd>,
    /// What goes out with the next receive.
    corked: Vec<u8>,
    /// What came right behind the handshake of TLS, decrypted.
    early: Vec<u8>,
    /// Whether all that had come was received.
    is_drained: bool,
    low_water: LowWater,
    /// Whether the way to the peer can send memory without a copy. Loopback copies in the end, and
    /// pays for the book-keeping.
    sends_in_place: bool,
    /// Where the peer is.
    peer: Option<IpAddr>,
    /// What is corked is plain, and is encrypted when it is sent.
    tls: Option<Box<Tls>>,
}

/// A connection of no shard, on its way from one to another. Nothing of it is under way.
pub(super) struct Detached {
    fd: OwnedFd,
    corked: Vec<u8>,
    early: Vec<u8>,
    is_drained: bool,
    sends_in_place: bool,
    peer: Option<IpAddr>,
    tls: Option<Box<Tls>>,
}

/// How many bytes have to have come before the owner of a socket hears of them.
#[derive(Clone, Debug)]
struct LowWater(Rc<Cell<usize>>);

impl LowWater {
    fn set(&self, socket: &OwnedFd, bytes: usize) -> io::Result<()> {
        if self.0.replace(bytes) == bytes {
            return Ok(());
        }
        ring::set_receive_low_water(socket, bytes)
    }
}

/// Received bytes.
pub(super) enum Received {
    Chunk(Chunk),
    /// In memory of its own: the ring had no buffer left, or was not asked.
    Spare(Vec<u8>),
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Received::Chunk(chunk) => chunk,
            Received::Spare(bytes) => bytes,
        }
    }
}

impl Socket {
    pub(super) fn new(reactor: &Rc<Reactor>, fd: OwnedFd, sends_in_place: bool) -> Socket {
        Socket::with(reactor, Rc::new(fd), sends_in_place)
    }

    fn with(reactor: &Rc<Reactor>, fd: Rc<OwnedFd>, sends_in_place: bool) -> Socket {
        Socket {
            reactor: Rc::clone(reactor),
            fd,
            corked: Vec::new(),
            early: Vec::new(),
            is_drained: true,
            low_water: LowWater(Rc::new(Cell::new(1))),
            sends_in_place,
            peer: None,
            tls: None,
        }
    }

    /// Takes the connection from its shard. Handles to it should be gone, or they keep it open.
    pub(super) fn detach(self) -> io::Result<Detached> {
        self.low_water.set(&self.fd, 1)?;
        let Socket { fd, corked, early, is_drained, sends_in_place, peer, tls, .. } = self;
        let fd = Rc::try_unwrap(fd).or_else(|fd| fd.try_clone())?;
        Ok(Detached { fd, corked, early, is_drained, sends_in_place, peer, tls })
    }

    /// Gives a connection to a shard.
    pub(super) fn attach(reactor: &Rc<Reactor>, detached: Detached) -> Socket {
        let Detached { fd, corked, early, is_drained, sends_in_place, peer, tls } = detached;
        let socket = Socket::new(reactor, fd, sends_in_place);
        Socket { corked, early, is_drained, peer, tls, ..socket }
    }

    /// Has everything encrypted from now on, after [`Self::shake_hands`].
    pub(super) fn begin_tls(&mut self, config: Arc<rustls::ServerConfig>) -> io::Result<()> {
        self.tls = Some(Box::new(Tls::of_server(config).map_err(io::Error::other)?));
        Ok(())
    }

    /// The same, towards another server that was connected to.
    pub(super) fn begin_tls_to(&mut self, to: &PeerTls) -> io::Result<()> {
        self.tls = Some(Box::new(Tls::of_client(to).map_err(io::Error::other)?));
        Ok(())
    }

    /// Speaks TLS until both know with whom; the certificate of the peer, if it has shown one.
    pub(super) async fn shake_hands(
        &mut self,
    ) -> io::Result<Option<&rustls::pki_types::CertificateDer<'static>>> {
        while self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            let mut early = Vec::new();
            if !self.receive_tls(&mut early).await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // Requests may follow the handshake in the same packet.
            self.early.append(&mut early);
        }
        self.flush().await?;
        Ok(self.tls.as_ref().and_then(|tls| tls.certificate()))
    }

    /// Whether what is received is decrypted, so that it cannot be received where it belongs.
    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The address of the peer, where it has one.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    pub(super) fn handle(&self) -> Handle {
        let (fd, low_water) = (Rc::clone(&self.fd), self.low_water.clone());
        Handle { fd, low_water, is_tls: self.is_tls() }
    }

    /// Receives what comes next; nothing is the end. What is corked goes out first.
    pub(super) async fn receive(&mut self) -> io::Result<Received> {
        if self.tls.is_none() {
            let corked = std::mem::take(&mut self.corked);
            return self.receive_raw(corked).await;
        }
        let mut bytes = std::mem::take(&mut self.early);
        while bytes.is_empty() && self.receive_tls(&mut bytes).await? {}
        Ok(Received::Spare(bytes))
    }

    /// Receives and decrypts; false at the end. May come back with nothing for `to`.
    async fn receive_tls(&mut self, to: &mut Vec<u8>) -> io::Result<bool> {
        let corked = self.encrypt_corked()?;
        let received = if self.is_drained {
            self.receive_raw(corked).await?
        } else {
            self.send_raw(corked).await?;
            let (bytes, _) = self.receive_into(Vec::new(), TLS_BYTES).await?;
            Received::Spare(bytes)
        };
        let Some(tls) = &mut self.tls else { return Ok(false) };
        if received.is_empty() {
            return Ok(false);
        }
        match tls.decrypt(&received, to) {
            // What came before the peer's last word counts.
            Ok(is_last) => Ok(!is_last || !to.is_empty()),
            Err(error) => {
                // The peer is told why, if it still listens.
                let alert = self.encrypt_corked()?;
                let _ = self.send_raw(alert).await;
                Err(error)
            }
        }
    }

    /// What is corked, as it is sent.
    fn encrypt_corked(&mut self) -> io::Result<Vec<u8>> {
        let corked = std::mem::take(&mut self.corked);
        match &mut self.tls {
            None => Ok(corked),
            Some(tls) => tls.encrypt(&corked),
        }
    }

    async fn receive_raw(&mut self, corked: Vec<u8>) -> io::Result<Received> {
        self.low_water.set(&self.fd, 1)?;
        let ring = self.reactor.ring();
        let done = if self.reactor.is_watching() && self.is_drained {
            ring.receive_watched(&self.fd, corked).await
        } else {
            ring.receive_chunk(&self.fd, corked, self.is_drained).await
        };
        self.is_drained = !done.has_more;
        match done {
            Completion { keep: Keep::Came(bytes), .. } if done.result.is_ok() => {
                Ok(Received::Spare(bytes))
            }
            Completion { chunk: Some(chunk), .. } => Ok(Received::Chunk(chunk)),
            Completion { result: Err(error), .. } if out_of_buffers(&error) => {
                let (bytes, _) = self.receive_into(Vec::new(), SPARE_BYTES).await?;
                Ok(Received::Spare(bytes))
            }
            Completion { result, .. } => result.map(|_| Received::Spare(Vec::new())),
        }
    }

    /// Receives behind what a vector holds, up to `bytes_max` bytes; returns how many came, 0 at
    /// the end.
    pub(super) async fn receive_into(
        &mut self,
        mut to: Vec<u8>,
        bytes_max: usize,
    ) -> io::Result<(Vec<u8>, usize)> {
        self.flush().await?;
        self.low_water.set(&self.fd, 1)?;
        to.reserve(bytes_max);
        let done = self.reactor.ring().receive_into(&self.fd, to, bytes_max).await;
        self.is_drained = !done.has_more;
        let received = done.result?;
        match done.keep {
            Keep::Filling(to) => Ok((to, received)),
            _ => Err(io::ErrorKind::Other.into()),
        }
    }

    /// Receives into memory that others map; returns how many bytes came, 0 at the end. The peer
    /// has promised to fill it.
    pub(super) async fn receive_landing(&mut self, to: Landing) -> io::Result<usize> {
        self.flush().await?;
        let bytes = to.bytes();
        let low_water = if bytes < LOW_WATER_BYTES_MIN { 1 } else { bytes.min(LOW_WATER_BYTES) };
        self.low_water.set(&self.fd, low_water)?;
        let done = self.reactor.ring().receive_landing(&self.fd, to).await;
        self.is_drained = !done.has_more;
        done.result
    }

    /// Has bytes sent together with the next receive: one entry into the kernel does both.
    pub(super) fn cork(&mut self, bytes: Vec<u8>) {
        match self.corked.is_empty() {
            true => self.corked = bytes,
            false => self.corked.extend_from_slice(&bytes),
        }
    }

    /// Sends what is corked.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let corked = self.encrypt_corked()?;
        self.send_raw(corked).await
    }

    async fn send_raw(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let length = bytes.len();
        whole(self.reactor.ring().send(&self.fd, bytes).await, length)
    }

    /// Sends what is corked, and then `part` of an output.
    pub(super) async fn send_output(
        &mut self,
        output: &Rc<Output>,
        part: Range<usize>,
        zero_copy_bytes_min: usize,
    ) -> io::Result<()> {
        if self.tls.is_some() {
            return self.send_encrypted(&output.as_bytes()[part]).await;
        }
        let corked = std::mem::take(&mut self.corked);
        let length = part.len();
        let in_place = self.sends_in_place && length >= zero_copy_bytes_min;
        let ring = self.reactor.ring();
        whole(ring.send_output(&self.fd, corked, output, part, in_place).await, length)
    }

    /// Sends what is corked, and then `bytes`, a piece at a time.
    async fn send_encrypted(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(TLS_BYTES) {
            let mut sent = self.encrypt_corked()?;
            if let Some(tls) = &mut self.tls {
                match sent.is_empty() {
                    true => sent = tls.encrypt(piece)?,
                    false => sent.append(&mut tls.encrypt(piece)?),
                }
            }
            self.send_raw(sent).await?;
        }
        Ok(())
    }

    /// Sends what is corked, and behind it what ends a TLS connection.
    async fn say_goodbye(&mut self) -> io::Result<()> {
        let mut last = self.encrypt_corked()?;
        if let Some(tls) = &mut self.tls {
            tls.close();
            last.append(&mut tls.encrypt(&[])?);
        }
        self.send_raw(last).await
    }

    /// Tells the peer that nothing more comes, and waits for its end for a bounded time, so that
    /// what was sent last is not lost to a reset.
    pub(super) async fn close(mut self) {
        if self.say_goodbye().await.is_err()
            || rustix::net::shutdown(&*self.fd, rustix::net::Shutdown::Write).is_err()
        {
            return;
        }
        let patience = self.reactor.sleep(LINGER);
        // What still comes is not looked at, so that it need not be decrypted.
        let drained = async {
            while self.receive_raw(Vec::new()).await.is_ok_and(|bytes| !bytes.is_empty()) {}
        };
        futures_lite::future::or(drained, patience).await;
    }
}

fn out_of_buffers(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

/// That all of a send went out.
fn whole(done: Completion, bytes: usize) -> io::Result<()> {
    match done.result? {
        sent if sent == bytes => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// The ways to touch a connection from beside the task that owns it.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    fd: Rc<OwnedFd>,
    low_water: LowWater,
    is_tls: bool,
}

impl Handle {
    /// Whether the peer has gone, as far as can be seen without taking bytes.
    pub(super) fn is_gone(&self) -> bool {
        // The last word of TLS is bytes, which are not looked at.
        if self.is_tls {
            return self.has_ended();
        }
        match self.peek() {
            Ok(count) => count == 0,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            Err(_) => true,
        }
    }

    /// Whether the peer says no more than what may be here already.
    pub(super) fn has_ended(&self) -> bool {
        let mut ended = [PollFd::new(&*self.fd, PollFlags::RDHUP)];
        rustix::event::poll(&mut ended, Some(&Timespec::default())) == Ok(1)
    }

    /// Whether the peer is there and has said nothing.
    pub(super) fn is_quiet(&self) -> bool {
        self.peek() == Err(rustix::io::Errno::AGAIN)
    }

    fn peek(&self) -> rustix::io::Result<usize> {
        let mut byte = [0_u8; 1];
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        rustix::net::recv(&*self.fd, &mut byte, flags).map(|(count, _)| count)
    }

    /// Has the owner hear of the bytes that are there, if it waits for more of them. Returns
    /// whether it did.
    pub(super) fn hear_all(&self) -> bool {
        self.low_water.0.get() > 1 && self.low_water.set(&self.fd, 1).is_ok()
    }

    /// Makes the owner's receive end.
    pub(super) fn stop_receiving(&self) {
        // The peer may have gone in the meantime; then receiving has ended anyway.
        let _ = rustix::net::shutdown(&*self.fd, rustix::net::Shutdown::Read);
    }
}

/// A device's doorbell, or the shard's own bell.
pub(super) struct Doorbell {
    reactor: Rc<Reactor>,
    socket: Rc<OwnedFd>,
    rings: Vec<u8>,
}

impl Doorbell {
    /// Rings that are heard at once.
    const RINGS: usize = 64;

    pub(super) fn new(reactor: &Rc<Reactor>, doorbell: OwnedFd) -> Doorbell {
        let socket = Rc::new(doorbell);
        Doorbell { reactor: Rc::clone(reactor), socket, rings: Vec::with_capacity(Self::RINGS) }
    }

    /// Waits until it rings; false when it never will again. Others have their turn in between,
    /// even if it rings all the time.
    pub(super) async fn rung(&mut self) -> bool {
        let mut rings = std::mem::take(&mut self.rings);
        rings.clear();
        let done = self.reactor.ring().receive_into(&self.socket, rings, Self::RINGS).await;
        if let Keep::Filling(rings) = done.keep {
            self.rings = rings;
        }
        matches!(done.result, Ok(count) if count > 0)
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
        Ok((Bell(Arc::new(ring.into())), wait.into()))
    }

    pub(super) fn ring(&self) {
        // A full socket is a bell that rings already; a closed one, a shard that has ended.
        let _ = rustix::net::send(&*self.0, &[1], rustix::net::SendFlags::NOSIGNAL);
    }
}

/// As a waker, a bell lets a thread wake a shard's tasks without touching its executor.
impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}
