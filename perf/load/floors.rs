//! What the machine allows: an echo of a small request, a plain bulk stream in each direction, a
//! copy in memory. Everything on the same two cores as a server and its load.

use std::hint::black_box;
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Instant;

use clap::ValueEnum;
use rustix::net::sockopt;
use serde_json::json;

use crate::bulk::{BULK_BYTES, MIB};
use crate::client::{PIECE_BYTES, Wire};
use crate::{Counts, Result, Results, median, process, repeated, report_times};

/// An empty batch and its reply, heads included.
pub(crate) const REQUEST_BYTES: usize = 135;
pub(crate) const REPLY_BYTES: usize = 38;
/// What a server would read and write at once, up to everything.
const SERVER_PIECES_BYTES: [usize; 4] = [64 << 10, 256 << 10, MIB, BULK_BYTES];

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    Echo,
    Stream,
    Memory,
}

/// How floors are measured.
pub(crate) struct Floors {
    pub(crate) counts: Counts,
    pub(crate) spin: bool,
    /// Whether the end that stands for the server spins too.
    pub(crate) server_spin: bool,
    pub(crate) server_core: Option<usize>,
    pub(crate) congestion: Option<String>,
}

type Peer = JoinHandle<()>;

pub(crate) fn measure(floors: &Floors, parts: &[Part]) -> Result<Results> {
    let mut results = Results::new();
    if parts.contains(&Part::Echo) {
        floors.echo(&mut results)?;
    }
    if parts.contains(&Part::Stream) {
        floors.stream(&mut results)?;
    }
    if parts.contains(&Part::Memory) {
        floors.memory(&mut results)?;
    }
    Ok(results)
}

impl Floors {
    /// Runs `serve` with one end of a connection on the server's core; returns the other end.
    fn connected(&self, serve: impl FnOnce(Wire) + Send + 'static) -> Result<(Wire, Peer)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        let (far, _) = listener.accept()?;
        if let Some(name) = &self.congestion {
            sockopt::set_tcp_congestion(&near, name)?;
            sockopt::set_tcp_congestion(&far, name)?;
        }
        let (far, core) = (Wire::new(far, self.server_spin)?, self.server_core);
        let peer = std::thread::spawn(move || match process::pin(core) {
            Ok(()) => serve(far),
            Err(error) => eprintln!("core {core:?}: {error}"),
        });
        Ok((Wire::new(near, self.spin)?, peer))
    }

    /// The round trip of a message as long as an empty batch.
    fn echo(&self, results: &mut Results) -> Result<()> {
        let (mut near, peer) = self.connected(|mut far| {
            let mut request = [0; REQUEST_BYTES];
            while far.read_exact(&mut request).is_ok() && far.write_all(&[0; REPLY_BYTES]).is_ok() {
            }
        })?;
        let mut once = || -> Result<_> {
            let began = Instant::now();
            near.write_all(&[0; REQUEST_BYTES])?;
            near.read_exact(&mut [0; REPLY_BYTES])?;
            Ok(began.elapsed())
        };
        for _ in 0..self.counts.round_trips / 10 {
            once()?;
        }
        let mut times: Vec<_> =
            (0..self.counts.round_trips).map(|_| once()).collect::<Result<_>>()?;
        report_times("floor_echo", &mut times, results);
        drop(near);
        peer.join().map_err(|_| "the echo thread failed".into())
    }

    /// Bytes from one thread's memory to the other's, both touched before, in each direction. The
    /// near end reads and writes as the load does, the far end, in a server's place, in several
    /// lengths.
    fn stream(&self, results: &mut Results) -> Result<()> {
        for piece in SERVER_PIECES_BYTES {
            let (inward, outward) = self.stream_in_pieces(piece)?;
            results.insert(format!("floor_tcp_in_by_{piece}_gbs"), json!(inward));
            results.insert(format!("floor_tcp_out_by_{piece}_gbs"), json!(outward));
        }
        Ok(())
    }

    fn stream_in_pieces(&self, piece: usize) -> Result<(f64, f64)> {
        let (mut near, peer) = self.connected(move |mut far| {
            let mut memory = vec![3_u8; BULK_BYTES];
            loop {
                // Takes everything, says so, and sends it back when it is asked to.
                let all_read = memory.chunks_mut(piece).all(|part| far.read_exact(part).is_ok());
                if !all_read || far.write_all(&[0]).is_err() || far.read_exact(&mut [0]).is_err() {
                    return;
                }
                if !memory.chunks(piece).all(|part| far.write_all(part).is_ok()) {
                    return;
                }
            }
        })?;
        let mut memory = vec![4_u8; BULK_BYTES];
        let mut outward = Vec::new();
        let mut both = || {
            let began = Instant::now();
            memory.chunks(PIECE_BYTES).try_for_each(|part| near.write_all(part))?;
            near.read_exact(&mut [0])?;
            let inward = began.elapsed();
            let began = Instant::now();
            near.write_all(&[0])?;
            memory.chunks_mut(PIECE_BYTES).try_for_each(|part| near.read_exact(part))?;
            outward.push(began.elapsed().as_secs_f64());
            Ok(inward)
        };
        // The first time also waits for the other thread to have its memory.
        both()?;
        let mut inward = repeated(self.counts, both)?;
        outward.remove(0);
        drop(near);
        peer.join().map_err(|_| "the stream thread failed")?;
        Ok((gigabytes_per_second(&mut inward), gigabytes_per_second(&mut outward)))
    }

    fn memory(&self, results: &mut Results) -> Result<()> {
        let from = vec![1_u8; BULK_BYTES];
        let mut to = vec![2_u8; BULK_BYTES];
        let mut times = repeated(self.counts, || {
            let began = Instant::now();
            to.copy_from_slice(black_box(&from));
            black_box(&to);
            Ok(began.elapsed())
        })?;
        results.insert("floor_memory_copy_gbs".into(), json!(gigabytes_per_second(&mut times)));
        Ok(())
    }
}

fn gigabytes_per_second(seconds: &mut [f64]) -> f64 {
    BULK_BYTES as f64 / median(seconds) / 1e9
}
