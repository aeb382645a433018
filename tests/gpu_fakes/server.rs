//! The whole server on the fakes: a client's batches, from the compiler to the bytes that come
//! back.

use crate::support::client::Client;
use crate::support::fakes::Watch;
use crate::support::{Server, ServerBuilder};

const SOURCES: [(&str, &str, &str); 2] = [
    ("cuda", "nvrtc", "extern \"C\" __global__ void increment_i32(int* data0) {}"),
    ("hip", "comgr", "extern \"C\" __attribute__((global)) void increment_i32(int* data0) {}"),
];

pub(crate) fn server(device: &str, isolation: &str, watch: &Watch) -> ServerBuilder {
    let builder = Server::builder().device(device).arg("--isolation").arg(isolation);
    let builder = builder.arg("--no-cache");
    watch.environment().iter().fold(builder, |builder, (name, value)| builder.env(name, value))
}

fn exec(client: &Client, source: &str, buffer: u64, wait: bool) -> String {
    let command = client.exec("increment_i32", source, &[buffer], wait);
    let command = command.replace("global_size=None", "global_size=(4, 1, 1)");
    command.replace("local_size=None", "local_size=(16, 1, 1)")
}

/// What any client does: memory, a program, launches, bytes back; then a fault of another's.
fn serve(device: &str, compiler: &str, source: &str, isolation: &str) -> Watch {
    let watch = Watch::new(&[device, compiler]);
    let server = server(device, isolation, &watch).start();
    assert!(server.ready_line().contains(&format!("device {}", device.to_uppercase())));
    let mut client = Client::connect(server.address(), "one");
    let properties = client.batch(&[format!("GetProperties({})", client.session(0))], &[]).ok();
    let properties = String::from_utf8(properties).unwrap();
    assert!(properties.contains(&format!("{}Renderer", device.to_uppercase())), "{properties}");
    let blob: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let begin = [
        client.alloc(1, 1 << 20),
        client.copy_in(1, &blob),
        client.program("increment_i32", source),
        exec(&client, source, 1, true),
    ];
    let seconds = client.batch(&begin, &[source.as_bytes(), &blob]).ok();
    let seconds: f64 = String::from_utf8(seconds).unwrap().parse().unwrap();
    assert!(seconds > 0.0);
    let out = client.batch(&[exec(&client, source, 1, false), client.copy_out(1)], &[]).ok();
    assert_eq!(out.len(), 1 << 20);
    let first = |bytes: &[u8]| i32::from_ne_bytes(bytes[..4].try_into().unwrap());
    assert_eq!(first(&out), first(&blob) + 2);
    assert!(out[256..] == blob[256..]);
    let image = client.alloc(2, 64).replace("image=None", "image=dtypes.imagef((1, 4))");
    let refused = client.batch(&[image], &[]);
    assert_ne!(refused.status, 200);
    let free = format!("SessionFree({})", client.session(0));
    client.batch(&[free], &[]).ok();
    drop(client);
    assert_eq!(server.stop().code(), Some(0));
    watch
}

#[test]
fn client_is_served_in_the_servers_process() {
    for (device, compiler, source) in SOURCES {
        serve(device, compiler, source, "process").assert_clean();
    }
}

#[test]
fn client_is_served_with_a_process_for_each_session() {
    for (device, compiler, source) in SOURCES {
        serve(device, compiler, source, "session").assert_clean();
    }
}

/// As the client's renderer writes it: two words are open, which the server fills in.
const PTX: &str = ".version VERSION\n.target TARGET\n.address_size 64\n\
    .visible .entry increment_i32(\n.param .u64 data0\n)\n{\nret;\n}\n";

#[test]
fn client_writes_ptx_where_it_is_asked_to_or_no_compiler_is_there() {
    for (libraries, options) in [
        (&["cuda"][..], &["--nvrtc", "/nowhere/libnvrtc.so"][..]),
        (&["cuda", "nvrtc"], &["--renderer", "ptx"]),
    ] {
        for isolation in ["process", "session"] {
            let watch = Watch::new(libraries);
            let server = server("cuda", isolation, &watch);
            let server = options.iter().fold(server, |server, option| server.arg(option)).start();
            let mut client = Client::connect(server.address(), "ptx");
            let properties = format!("GetProperties({})", client.session(0));
            let properties = client.batch(&[properties], &[]).ok();
            let properties = String::from_utf8(properties).unwrap();
            assert!(properties.contains("PTXRenderer"), "{properties}");
            let commands = [
                client.alloc(1, 256),
                client.program("increment_i32", PTX),
                exec(&client, PTX, 1, false),
                client.copy_out(1),
            ];
            let out = client.batch(&commands, &[PTX.as_bytes()]).ok();
            assert_eq!(out, [1, 0, 0, 0].repeat(64));
            drop(client);
            assert_eq!(server.stop().code(), Some(0));
            watch.assert_clean();
        }
    }
}

/// Lengths that go through pinned memory of different kinds, and in several pieces.
const LENGTHS: [u64; 3] = [1000, 300 << 10, 5 << 20];

fn expect_zeros(client: &mut Client) {
    for (number, bytes) in (100..).zip(LENGTHS) {
        let commands = [client.alloc(number, bytes), client.copy_out(number)];
        let found = client.batch(&commands, &[]).ok();
        assert_eq!(found.len() as u64, bytes);
        let leftover = found.iter().position(|byte| *byte != 0);
        assert_eq!(leftover, None, "in a new buffer of {bytes} bytes");
    }
}

#[test]
fn new_buffers_hold_nothing_of_earlier_ones() {
    for (device, _, _) in SOURCES {
        for isolation in ["process", "session"] {
            let watch = Watch::new(&[device]);
            let server = server(device, isolation, &watch).start();
            let mut first = Client::connect(server.address(), "first");
            for (number, bytes) in (0..).zip(LENGTHS) {
                let secret = vec![0xa5; usize::try_from(bytes).unwrap()];
                let fill = [first.alloc(number, bytes), first.copy_in(number, &secret)];
                first.batch(&fill, &[&secret]).ok();
                assert!(first.batch(&[first.copy_out(number)], &[]).ok() == secret);
                let free = format!("BufferFree({}, buffer_num={number})", first.session(0));
                first.batch(&[free], &[]).ok();
            }
            // Of its own, beside it, and after it.
            expect_zeros(&mut first);
            expect_zeros(&mut Client::connect(server.address(), "beside"));
            let end = format!("SessionFree({})", first.session(0));
            first.batch(&[end], &[]).ok();
            expect_zeros(&mut first);
            drop(first);
            expect_zeros(&mut Client::connect(server.address(), "after"));
            assert_eq!(server.stop().code(), Some(0));
            watch.assert_clean();
        }
    }
}

#[test]
fn fault_in_the_servers_process_costs_its_session() {
    let watch = Watch::new(&["cuda", "nvrtc"]);
    let server = server("cuda", "process", &watch).env("FAKE_GPU_FAULT", "context").start();
    let source = "extern \"C\" __global__ void illegal_address(int* data0) {}";
    let mut faulty = Client::connect(server.address(), "faulty");
    let mut other = Client::connect(server.address(), "other");
    other.batch(&[other.alloc(1, 8), other.copy_in(1, &[7; 8])], &[&[7; 8]]).ok();
    let run = exec(&faulty, source, 1, true).replace("increment_i32", "illegal_address");
    let commands = [faulty.alloc(1, 256), faulty.program("illegal_address", source), run];
    let failure = faulty.batch(&commands, &[source.as_bytes()]).failure();
    assert!(failure.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{failure}");
    let failure = faulty.batch(&[faulty.copy_out(1)], &[]).failure();
    assert!(failure.contains("start a new session"), "{failure}");
    assert_eq!(other.batch(&[other.copy_out(1)], &[]).ok(), [7; 8]);
    let ended = format!("SessionFree({})", faulty.session(0));
    faulty.batch(&[ended], &[]).ok();
    // The same session's name, anew.
    faulty.batch(&[faulty.alloc(1, 8), faulty.copy_in(1, &[9; 8])], &[&[9; 8]]).ok();
    assert_eq!(faulty.batch(&[faulty.copy_out(1)], &[]).ok(), [9; 8]);
    drop((faulty, other));
    assert_eq!(server.stop().code(), Some(0));
    watch.assert_clean();
}

#[test]
fn server_takes_what_there_is() {
    for (libraries, device) in [(vec!["cuda"], "CUDA"), (vec!["hip"], "HIP"), (vec![], "CPU")] {
        let watch = Watch::new(&libraries);
        let server = server("auto", "process", &watch).start();
        assert!(server.ready_line().contains(&format!("device {device},")), "{libraries:?}");
    }
}
