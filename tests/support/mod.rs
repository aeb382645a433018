//! What integration tests share: a server process that cannot outlive its test.
//!
//! [`Server`] starts the program under test and reads its ready line; [`process`] runs any command
//! under a time limit; [`client`] speaks the wire by hand, [`tinygrad`] runs the stock client.

#![allow(dead_code, reason = "every test binary includes this folder and uses its own part of it")]

pub(crate) mod client;
pub(crate) mod device;
pub(crate) mod fakes;
pub(crate) mod holdings;
pub(crate) mod hosts;
pub(crate) mod nodes;
pub(crate) mod place;
pub(crate) mod process;
pub(crate) mod skip;
pub(crate) mod tinygrad;
pub(crate) mod tls;
pub(crate) mod tokens;
pub(crate) mod wait;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use process::Process;
use rustix::process::Signal;

/// Until the ready line; a debug build on a busy machine takes a second.
const START_LIMIT: Duration = Duration::from_secs(60);
/// From SIGTERM to the exit.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A running server, on a port that the kernel chose, with its standard error in a file.
///
/// Dropping it sends SIGTERM and asserts that it exits with code 0; if the test is already failing
/// it is killed instead and its standard error is printed.
pub(crate) struct Server {
    process: Process,
    address: SocketAddr,
    ready_line: String,
    stderr: PathBuf,
    running: bool,
}

/// How to start a [`Server`]; the defaults are the CPU device on 127.0.0.1, any port.
pub(crate) struct ServerBuilder {
    device: String,
    listen: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Server {
    pub(crate) fn builder() -> ServerBuilder {
        ServerBuilder {
            device: "cpu".into(),
            listen: "127.0.0.1:0".into(),
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// A server with the defaults.
    pub(crate) fn start() -> Server {
        Server::builder().start()
    }

    /// Where it listens, with the real port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The first line of its standard output, without the line end.
    pub(crate) fn ready_line(&self) -> &str {
        &self.ready_line
    }

    /// What it has written to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Sends SIGTERM and returns how it ended; panics if it has not after half a minute.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.terminate()
    }

    /// Waits for an end that the test has caused by other means than [`Server::stop`].
    pub(crate) fn wait(mut self, limit: Duration) -> ExitStatus {
        let status = self.process.wait(limit);
        self.running = status.is_none();
        status.unwrap_or_else(|| panic!("the server still runs after {limit:?}"))
    }

    fn terminate(&mut self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        let status = self.process.wait(STOP_LIMIT);
        self.running = false;
        status.unwrap_or_else(|| {
            self.process.kill();
            panic!("the server still ran {STOP_LIMIT:?} after SIGTERM:\n{}", self.stderr())
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        let status = (!failing && self.running).then(|| self.terminate());
        if failing {
            self.process.kill();
        }
        let stderr = self.stderr();
        // Best effort: the folder belongs to the build and goes with it.
        let _ = std::fs::remove_file(&self.stderr);
        if failing {
            eprintln!("---- standard error of the server ----\n{stderr}");
        }
        if let Some(status) = status {
            assert_eq!(status.code(), Some(0), "{status}; standard error:\n{stderr}");
        }
    }
}

impl ServerBuilder {
    pub(crate) fn device(mut self, device: &str) -> Self {
        self.device = device.into();
        self
    }

    pub(crate) fn listen(mut self, address: &str) -> Self {
        self.listen = address.into();
        self
    }

    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn args<const N: usize>(mut self, args: [&str; N]) -> Self {
        self.args.extend(args.map(str::to_owned));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// With a network card for RDMA that is not there.
    pub(crate) fn on_fake_card(self) -> Self {
        let folder = fakes::folder("ibverbs");
        self.arg("--rdma=auto").env("LD_LIBRARY_PATH", &folder.to_string_lossy())
    }

    /// Starts the server and waits for its ready line.
    pub(crate) fn start(self) -> Server {
        let stderr = scratch_file("server");
        let log = std::fs::File::create(&stderr).expect("the scratch folder can be written");
        let mut command = Command::new(place::program());
        command.args(["serve", "--listen", &self.listen, "--device", &self.device]);
        if !self.args.iter().any(|arg| arg.starts_with("--rdma")) {
            // Tests expect the same on machines with such a card.
            command.args(["--rdma", "off"]);
        }
        command.args(&self.args).envs(self.env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut process = Process::spawn(&mut command);
        let stdout = process.stdout().expect("standard output is piped");
        let ready_line = first_line(stdout);
        let address = ready_line.as_deref().and_then(address_of);
        let Some((ready_line, address)) = ready_line.zip(address) else {
            process.kill();
            panic!("the server did not say where it listens:\n{}", read_lossy(&stderr));
        };
        Server { process, address, ready_line, stderr, running: true }
    }
}

/// The first line, if one comes in time. Goes on reading, so that the writer never blocks.
pub(crate) fn first_line(stream: impl std::io::Read + Send + 'static) -> Option<String> {
    let (lines, first) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            // Only the first has a reader; the others are read and let go.
            let _ = lines.send(line);
        }
    });
    first.recv_timeout(START_LIMIT).ok()
}

/// The address in `outboard: listening on 127.0.0.1:6667, device CPU, 2 shards`.
fn address_of(ready_line: &str) -> Option<SocketAddr> {
    ready_line.strip_prefix("outboard: listening on ")?.split(',').next()?.parse().ok()
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// A path for a new file in the build's scratch folder.
pub(crate) fn scratch_file(prefix: &str) -> PathBuf {
    let file = tempfile::Builder::new().prefix(prefix).tempfile_in(place::scratch());
    let file = file.expect("the scratch folder can be written");
    file.into_temp_path().keep().expect("a temporary file can be kept")
}
