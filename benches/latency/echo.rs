//! The floor: a connection to a thread that only echoes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::loopback::{Awake, Result, Wire, pin};

/// A thread that takes a message of one length and answers one of another.
pub(crate) struct Echo {
    wire: Wire,
    reply: Vec<u8>,
    thread: JoinHandle<()>,
}

impl Echo {
    pub(crate) fn start(request_bytes: usize, reply_bytes: usize, core: usize) -> Result<Echo> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        let (mut far, _) = listener.accept()?;
        far.set_nodelay(true)?;
        let thread = std::thread::spawn(move || {
            // Where it runs was checked when the server was started there.
            let _ = pin(core);
            let (mut request, reply) = (vec![1; request_bytes], vec![2; reply_bytes]);
            while far.read_exact(&mut request).is_ok() && far.write_all(&reply).is_ok() {}
        });
        Ok(Echo { wire: Wire::new(near)?, reply: vec![3; reply_bytes], thread })
    }

    pub(crate) fn wait_awake(&mut self, awake: Awake) -> Result<()> {
        self.wire.wait_awake(awake)
    }

    pub(crate) fn round_trip(&mut self, request: &[u8]) -> Result<Duration> {
        let began = Instant::now();
        self.wire.send(request)?;
        let mut filled = 0;
        while filled < self.reply.len() {
            filled += self.wire.receive(&mut self.reply[filled..])?;
        }
        Ok(began.elapsed())
    }

    pub(crate) fn stop(self) -> Result<()> {
        drop(self.wire);
        self.thread.join().map_err(|_| "the echo thread failed".into())
    }
}
