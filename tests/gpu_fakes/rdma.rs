//! Servers of GPUs whose memory a network card reaches: neither GPU nor card is there, and what one
//! server's card writes is in the other's device.

use std::sync::Arc;

use crate::rig::pattern;
use crate::support::client::Client;
use crate::support::fakes::Watch;
use crate::support::{Server, ServerBuilder};

const CONNECTED: &str = "connected by RDMA";
/// The fake HIP's version from which on memory can be shared.
const HIP_VERSION: (&str, &str) = ("FAKE_HIP_VERSION", "70253211");

/// What a server runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) device: &'static str,
    pub(crate) isolation: &'static str,
}

pub(crate) const CPU: Kind = Kind { device: "cpu", isolation: "session" };

pub(crate) fn gpus() -> impl Iterator<Item = Kind> {
    let of = |device| ["session", "process"].map(|isolation| Kind { device, isolation });
    ["cuda", "hip"].into_iter().flat_map(of)
}

/// A server and what the fakes under it say.
pub(crate) struct Host {
    pub(crate) server: Server,
    pub(crate) watch: Arc<Watch>,
}

impl Host {
    pub(crate) fn start(kind: Kind) -> Host {
        Host::with(kind, &[])
    }

    pub(crate) fn with(kind: Kind, more: &[(&str, &str)]) -> Host {
        Host::with_arguments(kind, more, &[])
    }

    pub(crate) fn with_arguments(kind: Kind, more: &[(&str, &str)], arguments: &[&str]) -> Host {
        let libraries: &[&str] = match kind.device {
            "cuda" => &["cuda", "nvrtc", "ibverbs"],
            "hip" => &["hip", "comgr", "ibverbs"],
            _ => &["ibverbs"],
        };
        let watch = Watch::of_confined(libraries);
        let builder = Server::builder().device(kind.device).args(["--rdma=auto", "--no-cache"]);
        let builder = builder.args(["--isolation", kind.isolation]).arg("--peer-timeout=5");
        let builder = arguments.iter().fold(builder, |builder, argument| builder.arg(argument));
        let environment = watch.environment();
        let environment = environment.iter().map(|(name, value)| (&**name, &**value));
        let builder = environment.chain([HIP_VERSION]).chain(more.iter().copied()).fold(
            builder,
            |builder: ServerBuilder, (name, value)| {
                let builder = builder.env(name, value);
                match name.starts_with("FAKE_") {
                    true => builder.arg(&format!("--driver-env={name}")),
                    false => builder,
                }
            },
        );
        Host { server: builder.start(), watch: Arc::new(watch) }
    }

    fn client(&self, bytes: u64) -> Client {
        let name = format!("pair{bytes}");
        let mut client = Client::connect(self.server.address(), &name).naming_its_server();
        client.batch(&[client.alloc(1, bytes), client.alloc(2, bytes)], &[]).ok();
        client
    }

    /// How often it has connected to another by RDMA.
    pub(crate) fn connected(&self) -> usize {
        self.server.stderr().matches(CONNECTED).count()
    }

    pub(crate) fn finish(self) {
        assert_eq!(self.server.stop().code(), Some(0));
        self.watch.assert_clean();
    }
}

/// Has `from` write its buffer 1 to buffer 2 of `to`.
fn transfer(from: &Client, to: &Client) -> String {
    let (session, to) = (from.session(0), to.key(0));
    format!("Transfer({session}, buffer_num=1, dsession={to}, dbuffer_num=2)")
}

/// Copies of several lengths from one kind of server to another.
fn copies(near: Kind, far: Kind) -> [Host; 2] {
    let hosts = [Host::start(near), Host::start(far)];
    for bytes in [1_usize, 4096, 300_001, (5 << 20) + 7] {
        let [mut near, mut far] = hosts.each_ref().map(|host| host.client(bytes as u64));
        let data = pattern(bytes);
        near.batch(&[near.copy_in(1, &data), transfer(&near, &far)], &[&data]).ok();
        assert!(far.batch(&[far.copy_out(2)], &[]).ok() == data, "{bytes} bytes");
    }
    let said = hosts[0].server.stderr();
    assert!(hosts[0].connected() > 0, "{said}");
    // Over HTTP they would have been read first.
    let read =
        ["cuMemcpyDtoHAsync_v2", "hipMemcpyDtoHAsync"].map(|call| hosts[0].watch.calls(call));
    assert_eq!(read, [0, 0], "{said}");
    hosts
}

#[test]
fn copy_from_device_to_device_is_written_by_the_card() {
    for kind in gpus() {
        for host in copies(kind, kind) {
            // Nothing went through this server's memory, but what the client has read.
            let [cuda, hip] = ["cuMemPoolCreate", "hipMemPoolCreate"];
            assert_eq!(host.watch.calls(cuda) + host.watch.calls(hip), 0, "{kind:?}");
            host.finish();
        }
    }
}

#[test]
fn copies_between_a_device_and_a_servers_own_memory_are_written_by_the_card() {
    for kind in gpus() {
        copies(kind, CPU).into_iter().for_each(Host::finish);
        copies(CPU, kind).into_iter().for_each(Host::finish);
    }
}

/// What a graph of two hosts does on one of them, in rounds: its kernel sees what the other wrote.
fn rounds(kind: Kind, more: &[(&str, &str)]) -> [Host; 2] {
    const BYTES: usize = 256;
    let hosts = [Host::with(kind, more), Host::with(kind, more)];
    let [mut near, mut far] = hosts.each_ref().map(|host| host.client(BYTES as u64));
    let source = match kind.device {
        "cuda" => "extern \"C\" __global__ void increment_i32(int* data0) {}",
        _ => "extern \"C\" __attribute__((global)) void increment_i32(int* data0) {}",
    };
    for client in [&mut near, &mut far] {
        client.batch(&[client.program("increment_i32", source)], &[source.as_bytes()]).ok();
    }
    let run = |client: &Client, buffer| {
        let command = client.exec("increment_i32", source, &[buffer], false);
        let command = command.replace("global_size=None", "global_size=(4, 1, 1)");
        command.replace("local_size=None", "local_size=(16, 1, 1)")
    };
    for round in 0..10_i32 {
        let data = round.to_ne_bytes().repeat(BYTES / 4);
        let (number, session, to) = (round, near.session(0), far.key(0));
        let event = format!("Event({session}, event_session={to}, event={number})");
        let wait = format!("Wait({}, event={number})", far.session(0));
        far.send(&[wait, run(&far, 2), far.copy_out(2)], &[]);
        let begin = [near.copy_in(1, &data), run(&near, 1), transfer(&near, &far), event];
        near.batch(&begin, &[&data]).ok();
        let expected = (round + 2).to_ne_bytes().repeat(BYTES / 4);
        assert!(far.receive().ok() == expected, "round {round} of {kind:?}");
    }
    hosts
}

#[test]
fn kernels_see_what_the_card_has_written_behind_an_event() {
    for kind in gpus() {
        for host in rounds(kind, &[]) {
            assert_eq!(host.watch.calls("cuFlushGPUDirectRDMAWrites"), 0);
            host.finish();
        }
    }
}

#[test]
fn device_that_does_not_order_the_cards_writes_is_told_to_look() {
    for isolation in ["session", "process"] {
        let kind = Kind { device: "cuda", isolation };
        let [near, far] = rounds(kind, &[("FAKE_GPU_FLUSHES", "1")]);
        assert_eq!(near.watch.calls("cuFlushGPUDirectRDMAWrites"), 0, "nobody writes there");
        // From the second round on its place is known before the batch begins.
        let flushes = far.watch.calls("cuFlushGPUDirectRDMAWrites");
        assert!(flushes >= 10, "{flushes} for ten events");
        near.finish();
        far.finish();
    }
}

/// Copies in both directions between a server with these settings and one without.
fn there_and_back(kind: Kind, more: &[(&str, &str)]) -> [Host; 2] {
    let hosts = [Host::with(kind, more), Host::start(kind)];
    for bytes in [300_001, (9 << 20) + 3] {
        let [mut one, mut other] = hosts.each_ref().map(|host| host.client(bytes as u64));
        let data = [pattern(bytes), pattern(bytes + 1)[1..].to_vec()];
        for _ in 0..2 {
            one.batch(&[one.copy_in(1, &data[0]), transfer(&one, &other)], &[&data[0]]).ok();
            assert!(other.batch(&[other.copy_out(2)], &[]).ok() == data[0], "{bytes} bytes there");
            other.batch(&[other.copy_in(1, &data[1]), transfer(&other, &one)], &[&data[1]]).ok();
            assert!(one.batch(&[one.copy_out(2)], &[]).ok() == data[1], "{bytes} bytes back");
        }
    }
    hosts
}

#[test]
fn memory_out_of_the_cards_reach_is_written_from_the_servers_own_and_by_way_of_it() {
    for kind in gpus() {
        for (refusal, words) in [
            (("FAKE_GPU_CARDS", "0"), "no descriptors (dmabuf)"),
            (("FAKE_IBVERBS_DMABUF", "0"), "network card could not be told"),
        ] {
            if refusal.0 == "FAKE_GPU_CARDS" && kind.device == "hip" {
                continue;
            }
            let [near, far] = there_and_back(kind, &[refusal]);
            let said = near.server.stderr();
            assert_eq!(said.matches("does not reach the devices' memory").count(), 1, "{said}");
            assert!(said.contains(words), "{said}");
            assert!(near.connected() > 0, "{said}");
            assert!(far.connected() > 0, "{}", far.server.stderr());
            let pools = near.watch.calls("cuMemPoolCreate") + near.watch.calls("hipMemPoolCreate");
            assert!(pools > 0, "memory comes from pools as ever");
            near.finish();
            far.finish();
        }
    }
}

#[test]
fn buffers_that_the_driver_has_no_descriptors_for_are_copied_all_the_same() {
    let kind = Kind { device: "cuda", isolation: "process" };
    // The first is the one that is tried when the server starts.
    let fails = [("FAKE_GPU_FAIL", "cuMemGetHandleForAddressRange:801:from=2")];
    let hosts = there_and_back(kind, &fails);
    assert!(!hosts[0].server.stderr().contains("does not reach the devices"));
    assert!(hosts.iter().all(|host| host.connected() > 0));
    hosts.into_iter().for_each(Host::finish);
}

#[test]
fn batch_of_buffers_within_the_cards_reach_and_out_of_it_arrives() {
    let kind = Kind { device: "cuda", isolation: "process" };
    let fails = [("FAKE_GPU_FAIL", "cuMemGetHandleForAddressRange:801:nth=2")];
    let hosts = [Host::with(kind, &fails), Host::start(kind)];
    let bytes = 3 << 20;
    let [mut near, mut far] = hosts.each_ref().map(|host| host.client(bytes as u64));
    let data = [pattern(bytes), pattern(bytes + 9)[9..].to_vec()];
    near.batch(&[near.alloc(3, bytes as u64)], &[]).ok();
    far.batch(&[far.alloc(4, bytes as u64)], &[]).ok();
    let [source, to] = [near.key(0), far.key(0)];
    let copy = format!(
        "BatchTransfer({}, sbuffer_nums=[({source}, 1), ({source}, 3)], \
         dbuffer_nums=[({to}, 2), ({to}, 4)])",
        near.session(0)
    );
    let fill = [near.copy_in(1, &data[0]), near.copy_in(3, &data[1]), copy];
    near.batch(&fill, &[&data[0], &data[1]]).ok();
    for (buffer, data) in [(2, &data[0]), (4, &data[1])] {
        assert!(far.batch(&[far.copy_out(buffer)], &[]).ok() == *data, "buffer {buffer}");
    }
    assert_eq!(hosts[0].connected(), 1);
    assert!(hosts[0].watch.calls("cuMemcpyDtoHAsync_v2") > 0, "the first goes through the server");
    assert_eq!(hosts[1].watch.calls("cuMemcpyHtoDAsync_v2"), 0, "the card writes both");
    drop((near, far));
    hosts.into_iter().for_each(Host::finish);
}

#[test]
fn buffer_that_was_freed_is_not_written_by_its_old_key() {
    for kind in gpus() {
        let hosts = [Host::start(kind), Host::start(kind)];
        let [mut near, mut far] = hosts.each_ref().map(|host| host.client(5000));
        let (zeros, data) = (vec![0; 5000], pattern(5000));
        near.batch(&[near.copy_in(1, &data), transfer(&near, &far)], &[&data]).ok();
        let free = format!("BufferFree({}, buffer_num=2)", far.session(0));
        // What is there now has the old one's memory.
        far.batch(&[free, far.alloc(3, 5000)], &[]).ok();
        let failure = near.batch(&[transfer(&near, &far)], &[]).failure();
        assert!(failure.contains("unknown buffer 2"), "{failure}");
        assert!(far.batch(&[far.copy_out(3)], &[]).ok() == zeros);
        far.batch(&[far.alloc(2, 5000)], &[]).ok();
        near.batch(&[transfer(&near, &far)], &[]).ok();
        assert!(far.batch(&[far.copy_out(2)], &[]).ok() == data);
        drop((near, far));
        hosts.into_iter().for_each(Host::finish);
    }
}

/// Several messages, of which the first are written when the next thing happens.
const LONG: usize = 12 << 20;

#[test]
fn buffer_that_is_freed_in_the_middle_of_a_write_is_not_written_any_more() {
    for kind in gpus() {
        let hosts = [Host::start(kind), Host::start(kind)];
        let [mut near, mut far] = hosts.each_ref().map(|host| host.client(LONG as u64));
        let (data, zeros) = (pattern(LONG), vec![0; LONG]);
        near.batch(&[near.copy_in(1, &data), transfer(&near, &far)], &[&data]).ok();
        for round in 0..2 {
            near.send(&[transfer(&near, &far)], &[]);
            let free = |buffer| format!("BufferFree({}, buffer_num={buffer})", far.session(0));
            // What comes next has the same memory.
            let again = [free(2), far.alloc(3, LONG as u64), far.copy_out(3)];
            assert!(far.batch(&again, &[]).ok() == zeros, "round {round} of {kind:?}");
            let reply = near.receive();
            if reply.status != 200 {
                let failure = reply.failure();
                let is_known =
                    ["unknown buffer 2", "REM_ACCESS"].iter().any(|why| failure.contains(why));
                assert!(is_known, "{failure}");
            }
            assert!(far.batch(&[far.copy_out(3)], &[]).ok() == zeros, "round {round} of {kind:?}");
            let back = format!("BufferFree({}, buffer_num=3)", far.session(0));
            far.batch(&[back, far.alloc(2, LONG as u64)], &[]).ok();
        }
        near.batch(&[transfer(&near, &far)], &[]).ok();
        assert!(far.batch(&[far.copy_out(2)], &[]).ok() == data);
        drop((near, far));
        hosts.into_iter().for_each(Host::finish);
    }
}

#[test]
fn source_that_is_freed_in_the_middle_of_a_write_is_there_until_its_end() {
    for kind in gpus() {
        let hosts = [Host::start(kind), Host::start(kind)];
        let [mut near, mut far] = hosts.each_ref().map(|host| host.client(LONG as u64));
        let data = pattern(LONG);
        near.batch(&[near.copy_in(1, &data), transfer(&near, &far)], &[&data]).ok();
        for _ in 0..2 {
            let mut other = Client::connect(hosts[0].server.address(), &format!("pair{LONG}"))
                .naming_its_server();
            near.send(&[transfer(&near, &far)], &[]);
            let free = format!("BufferFree({}, buffer_num=1)", other.session(0));
            other.batch(&[free], &[]).ok();
            let reply = near.receive();
            assert!(reply.status == 200 || reply.failure().contains("unknown buffer 1"));
            near.batch(&[near.alloc(1, LONG as u64), near.copy_in(1, &data)], &[&data]).ok();
        }
        near.batch(&[transfer(&near, &far)], &[]).ok();
        assert!(far.batch(&[far.copy_out(2)], &[]).ok() == data);
        drop((near, far));
        hosts.into_iter().for_each(Host::finish);
    }
}

/// The processes that drive a server's devices.
fn workers(server: &Server) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let mut workers = Vec::new();
    for task in tasks {
        let list = std::fs::read_to_string(task.unwrap().path().join("children"));
        workers.extend(
            list.unwrap_or_default().split_whitespace().map(|pid| pid.parse::<i32>().unwrap()),
        );
    }
    workers
}

#[test]
fn worker_that_is_killed_in_the_middle_of_a_write_takes_its_own_session_only() {
    for device in ["cuda", "hip"] {
        for end in 0..2 {
            let kind = Kind { device, isolation: "session" };
            let hosts = [Host::start(kind), Host::start(kind)];
            let [mut near, mut far] = hosts.each_ref().map(|host| host.client(LONG as u64));
            near.batch(&[transfer(&near, &far)], &[]).ok();
            let worker = workers(&hosts[end].server)[0];
            let [mut one, mut other] = hosts.each_ref().map(|host| host.client(5000));
            near.send(&[transfer(&near, &far)], &[]);
            let pid = rustix::process::Pid::from_raw(worker).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            let reply = near.receive();
            assert!(reply.status == 200 || reply.failure().contains("start a new session"));
            let client = if end == 0 { &mut near } else { &mut far };
            crate::support::wait::wait_until("the session is lost", || {
                client.batch(&[client.copy_out(1)], &[]).status != 200
            });
            let failure = near.batch(&[transfer(&near, &far)], &[]).failure();
            assert!(failure.contains("start a new session"), "{failure}");
            let data = pattern(5000);
            one.batch(&[one.copy_in(1, &data), transfer(&one, &other)], &[&data]).ok();
            assert!(other.batch(&[other.copy_out(2)], &[]).ok() == data);
            drop((near, far, one, other));
            hosts.into_iter().for_each(Host::finish);
        }
    }
}

/// The lines of `outboard check` about RDMA.
fn check(libraries: &[&str], more: &[(&str, &str)]) -> String {
    let watch = Watch::new(libraries);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_outboard"));
    command.arg("check").envs(watch.environment()).env(HIP_VERSION.0, HIP_VERSION.1);
    let output = command.envs(more.iter().copied()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    watch.assert_clean();
    text.lines().filter(|line| line.contains("RDMA")).collect::<Vec<_>>().join("\n")
}

#[test]
fn check_says_whether_the_card_reaches_the_devices_memory() {
    for (library, subject) in [("cuda", "CUDA+RDMA"), ("hip", "HIP+RDMA")] {
        let lines = check(&[library, "ibverbs"], &[]);
        assert!(lines.contains("ok     RDMA       fake0"), "{lines}");
        let is_it = |line: &&str| line.split_whitespace().nth(1) == Some(subject);
        let line = lines.lines().find(is_it).unwrap();
        assert!(line.starts_with("ok ") && line.contains("reaches its memory"), "{line}");
        let lines = check(&[library, "ibverbs"], &[("FAKE_IBVERBS_DMABUF", "0")]);
        let line = lines.lines().find(is_it).unwrap();
        assert!(
            line.starts_with("lacks ") && line.contains("by way of the server's own"),
            "{line}"
        );
    }
    let lines = check(&["cuda", "ibverbs"], &[("FAKE_GPU_CARDS", "0")]);
    assert!(lines.contains("lacks  CUDA+RDMA"), "{lines}");
}
