//! Which devices there are, a server for one of them, and a session that speaks the wire by hand.

#![expect(clippy::unwrap_used, reason = "a test ends where its session cannot go on")]

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::kernels::{Dialect, GROUP, Kernel};
use crate::support::client::{Client, Reply};
use crate::support::process::Process;
use crate::support::skip::skip;
use crate::support::{Server, ServerBuilder, place};

/// Devices that the stock client's own tests ask for.
const CLIENT_DEVICES: usize = 6;
/// Making the contexts of many sessions at once takes that long on a large machine.
const REPLY_LIMIT: Duration = Duration::from_secs(240);
const CHECK_LIMIT: Duration = Duration::from_secs(60);

/// A kind of device that a server is started for.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// As `--device` has it.
    pub(crate) device: &'static str,
    /// How many of them there are.
    pub(crate) count: usize,
}

impl Place {
    pub(crate) fn cpu() -> Place {
        Place { device: "cpu", count: CLIENT_DEVICES }
    }

    /// The GPUs of this machine, or what `OUTBOARD_TEST_GPU` names in their place. Where there is
    /// none the test is skipped, and with `REQUIRE_GPU=1` it fails.
    pub(crate) fn gpu() -> Option<Place> {
        static FOUND: OnceLock<Result<Place, String>> = OnceLock::new();
        let required = std::env::var("REQUIRE_GPU").is_ok_and(|value| value == "1");
        match FOUND.get_or_init(find) {
            Ok(place) => Some(place.clone()),
            Err(why) => {
                assert!(!required, "REQUIRE_GPU=1, and there is no GPU: {why}");
                skip("GPU", "`outboard check` finds none that it can use");
                None
            }
        }
    }

    /// Whether the device is one of those that the tests are named after.
    pub(crate) fn is_gpu(&self) -> bool {
        self.device != "cpu"
    }

    pub(crate) fn builder(&self) -> ServerBuilder {
        Server::builder().device(self.device)
    }

    /// The stock client's HOST variable for as many devices as it asks for: sessions of the same
    /// devices again and again where the machine has fewer.
    pub(crate) fn hosts(&self, server: &Server) -> String {
        let count = self.count.min(CLIENT_DEVICES);
        let host = format!("{}*{count}", server.address());
        vec![host; CLIENT_DEVICES.div_ceil(count)].join(",")
    }
}

fn find() -> Result<Place, String> {
    match std::env::var("OUTBOARD_TEST_GPU").as_deref() {
        Ok("cpu") => return Ok(Place::cpu()),
        Ok("cuda") => return Ok(Place { device: "cuda", count: 1 }),
        Ok("hip") => return Ok(Place { device: "hip", count: 1 }),
        Ok(other) => return Err(format!("OUTBOARD_TEST_GPU={other} is not cuda, hip or cpu")),
        Err(_) => {}
    }
    let lines = check();
    let of = |subject: &str| -> Vec<&str> {
        let fields = |line: &&str| {
            let mut words = line.split_whitespace();
            words.next() == Some("ok") && words.next() == Some(subject)
        };
        lines.lines().filter(fields).collect()
    };
    // A line for the driver, and one for each device.
    for (subject, device) in [("CUDA", "cuda"), ("HIP", "hip")] {
        if let count @ 1.. = of(subject).len().saturating_sub(1) {
            return Ok(Place { device, count });
        }
    }
    let said: Vec<&str> =
        lines.lines().filter(|line| line.contains("CUDA") || line.contains("HIP")).collect();
    Err(said.join("; "))
}

/// What `outboard check` says of this machine.
fn check() -> String {
    let output = crate::support::scratch_file("check");
    let mut command = Command::new(place::program());
    command.arg("check").stdin(Stdio::null()).stderr(Stdio::null());
    command.stdout(std::fs::File::create(&output).unwrap());
    let ended = Process::spawn(&mut command).wait(CHECK_LIMIT);
    let text = std::fs::read_to_string(&output).unwrap();
    std::fs::remove_file(&output).unwrap();
    assert!(ended.is_some(), "`outboard check` did not end within {CHECK_LIMIT:?}:\n{text}");
    text
}

/// A connection with one session, whose device's language is known.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) dialect: Dialect,
}

impl Session {
    pub(crate) fn begin(address: SocketAddr, nonce: &str) -> Session {
        let mut client = Client::connect(address, nonce);
        client.stream.set_read_timeout(Some(REPLY_LIMIT)).unwrap();
        let properties = format!("GetProperties({})", client.session(0));
        let properties = String::from_utf8(client.batch(&[properties], &[]).ok()).unwrap();
        Session { client, dialect: Dialect::of(&properties) }
    }

    /// Makes buffers with these contents.
    pub(crate) fn fill(&mut self, buffers: &[(u64, &[u32])]) {
        let blobs: Vec<Vec<u8>> = buffers.iter().map(|(_, values)| bytes_of(values)).collect();
        let commands: Vec<String> = buffers
            .iter()
            .zip(&blobs)
            .flat_map(|((number, _), blob)| {
                let bytes = u64::try_from(blob.len()).unwrap();
                [self.client.alloc(*number, bytes), self.client.copy_in(*number, blob)]
            })
            .collect();
        let blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
        self.client.batch(&commands, &blobs).ok();
    }

    /// Compiles a kernel.
    pub(crate) fn load(&mut self, kernel: &Kernel) -> Reply {
        let program = self.client.program(kernel.name, &kernel.source);
        self.client.batch(&[program], &[kernel.source.as_bytes()])
    }

    /// A launch of a kernel over so many elements.
    pub(crate) fn launch(
        &self,
        kernel: &Kernel,
        buffers: &[u64],
        elements: usize,
        wait: bool,
    ) -> String {
        let head = self.client.exec(kernel.name, &kernel.source, buffers, wait);
        let none = Dialect::C.sizes(GROUP);
        assert!(head.contains(&none), "{head}");
        head.replace(&none, &self.dialect.sizes(elements))
    }

    pub(crate) fn read(&mut self, buffer: u64) -> Vec<u32> {
        let command = self.client.copy_out(buffer);
        values_of(&self.client.batch(&[command], &[]).ok())
    }
}

pub(crate) fn bytes_of(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn values_of(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|four| u32::from_le_bytes(four.try_into().unwrap())).collect()
}

/// Values that differ from one another and between seeds.
pub(crate) fn values(seed: u32, count: usize) -> Vec<u32> {
    (0..u32::try_from(count).unwrap())
        .map(|at| at.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503))
        .collect()
}

/// What adding two arrays gives.
pub(crate) fn sums(left: &[u32], right: &[u32]) -> Vec<u32> {
    left.iter().zip(right).map(|(a, b)| a.wrapping_add(*b)).collect()
}
