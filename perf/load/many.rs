//! Many connections of one server: what an idle one costs, and what 64 active ones get done.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use serde_json::json;

use crate::client::{Client, head_end, parse_head};
use crate::server::round_trips;
use crate::{Result, Results, Setting, process, report_times};

/// Connections that each have a request under way.
pub(crate) const ACTIVE: usize = 64;
/// A reply to an empty batch is far shorter.
const REPLY_BYTES_MAX: usize = 1024;
/// Without any reply for this long, the server hangs.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// One of `count` connections works while the others, which have had one batch each, are idle; then
/// up to 64 work.
pub(crate) fn measure(setting: &Setting, count: usize) -> Result<Results> {
    let mut results = Results::new();
    let mut client = Client::connect(setting.address, setting.spin)?;
    let empty = client.batch("[]");
    client.request(&empty)?;
    let before = setting.pid.map(process::resident_bytes);
    let mut idle = (1..count)
        .map(|_| {
            let mut stream = TcpStream::connect(setting.address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            stream.write_all(&empty)?;
            let mut reply = Vec::new();
            while head_end(&reply).is_none() {
                let mut bytes = [0; REPLY_BYTES_MAX];
                match stream.read(&mut bytes)? {
                    0 => return Err("the server closed the connection".into()),
                    read => reply.extend_from_slice(&bytes[..read]),
                }
            }
            check_empty(&reply)?;
            Ok(stream)
        })
        .collect::<Result<Vec<_>>>()?;
    round_trips(&mut client, "one_active", &empty, setting, &mut results)?;
    if let Some((before, pid)) = before.zip(setting.pid)
        && !idle.is_empty()
    {
        let each = (process::resident_bytes(pid) - before) / idle.len() as f64;
        results.insert("resident_bytes_each".into(), json!(each));
    }
    let active = idle.split_off(idle.len().saturating_sub(ACTIVE));
    if !active.is_empty() {
        let time = setting.counts.time.max(Duration::from_millis(50));
        drive(setting, active, &empty, time, &mut results)?;
    }
    Ok(results)
}

/// What `count` connections get done in a while, each with one request under way.
pub(crate) fn throughput(
    setting: &Setting,
    count: usize,
    time: Duration,
    begin: impl FnOnce() -> Result<()>,
    results: &mut Results,
) -> Result<()> {
    let mut client = setting.connect()?;
    let empty = client.batch("[]");
    let streams: Result<Vec<_>> =
        (0..count).map(|_| setting.connect().map(Client::into_stream)).collect();
    let streams = streams?;
    begin()?;
    drive(setting, streams, &empty, time, results)
}

/// A connection with one request under way.
struct Active {
    stream: TcpStream,
    reply: Vec<u8>,
    began: Instant,
}

impl Active {
    fn send(&mut self, request: &[u8]) -> Result<()> {
        self.reply.clear();
        self.began = Instant::now();
        // So short a request fits into a socket that has nothing else to send.
        Ok(self.stream.write_all(request)?)
    }

    /// Whether the whole reply is here.
    fn receive(&mut self) -> Result<bool> {
        let mut bytes = [0; REPLY_BYTES_MAX];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err("the server closed the connection".into()),
            Ok(count) => {
                self.reply.extend_from_slice(&bytes[..count]);
                if head_end(&self.reply).is_none() {
                    return Ok(false);
                }
                check_empty(&self.reply)?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn check_empty(reply: &[u8]) -> Result<()> {
    match parse_head(reply)? {
        (200, 0) => Ok(()),
        (status, length) => Err(format!("status {status} with {length} bytes").into()),
    }
}

fn drive(
    setting: &Setting,
    streams: Vec<TcpStream>,
    request: &[u8],
    time: Duration,
    results: &mut Results,
) -> Result<()> {
    let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = Vec::new();
    for (number, stream) in (0_u64..).zip(streams) {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        epoll::add(&ready, &stream, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
        connections.push(Active { stream, reply: Vec::new(), began: Instant::now() });
    }
    let cpu_before = setting.pid.and_then(process::cpu_seconds);
    for connection in &mut connections {
        connection.send(request)?;
    }
    let began = Instant::now();
    let mut times = Vec::new();
    let mut events = Vec::with_capacity(connections.len());
    while began.elapsed() < time {
        events.clear();
        let buffer = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&ready, buffer, Some(&PATIENCE)) {
            // This process was stopped and let go on.
            Err(Errno::INTR) => continue,
            Ok(0) => return Err("no connection gets a reply".into()),
            waited => drop(waited?),
        }
        for event in &events {
            let connection = &mut connections[usize::try_from(event.data.u64())?];
            if connection.receive()? {
                times.push(connection.began.elapsed());
                connection.send(request)?;
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    results.insert("active_requests_per_s".into(), json!(times.len() as f64 / seconds));
    if let Some((before, after)) = cpu_before.zip(setting.pid.and_then(process::cpu_seconds)) {
        let each = (after - before) * 1e6 / times.len() as f64;
        results.insert("active_server_cpu_us".into(), json!(each));
    }
    report_times("active", &mut times, results);
    Ok(())
}
