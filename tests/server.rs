//! The whole server, over sockets: what clients can do to it, to themselves and to each other.

mod support;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::Server;
use support::client::{Client, body_of, request_of};
use support::holdings::{Holdings, read_of_tasks, worker_ticks};
use support::skip::skip;
use support::wait::{wait_for, wait_until};

const ADD_ONE: &str = "void add1(unsigned char* restrict data0) {\n\
                       for (int i = 0; i < 16; i++) { data0[i] = data0[i] + 1; }\n}\n";

const ENDLESS: &str = "void bad(volatile int* data0) { for (;;) { data0[0] = 1; } }";

/// Sends a batch that waits for a kernel that never ends.
fn send_endless(client: &mut Client) {
    let commands = [
        client.alloc(1, 16),
        client.program("bad", ENDLESS),
        client.exec("bad", ENDLESS, &[1], true),
    ];
    client.send(&commands, &[ENDLESS.as_bytes()]);
}

/// A kernel's work, from memory to memory.
fn add_one_works(client: &mut Client) {
    let bytes: Vec<u8> = (0..16).collect();
    let commands = [
        client.alloc(1, 16),
        client.copy_in(1, &bytes),
        client.program("add1", ADD_ONE),
        client.exec("add1", ADD_ONE, &[1], false),
        client.copy_out(1),
    ];
    let reply = client.batch(&commands, &[&bytes, ADD_ONE.as_bytes()]).ok();
    assert_eq!(reply, (1..17).collect::<Vec<u8>>());
}

/// Runs a kernel that does harm, and checks that it costs its own session an error that says
/// `expected`, and another client nothing.
fn kernel_harms_only_itself(server: &Server, source: &str, expected: &str) {
    let mut other = Client::connect(server.address(), "other");
    add_one_works(&mut other);
    let mut client = Client::connect(server.address(), "harmful");
    let commands = [
        client.alloc(1, 16),
        client.program("bad", source),
        client.exec("bad", source, &[1], false),
        client.copy_out(1),
    ];
    client.send(&commands, &[source.as_bytes()]);
    // The other session works while the kernel does its harm.
    let exec = [other.exec("add1", ADD_ONE, &[1], false), other.copy_out(1)];
    assert_eq!(other.batch(&exec, &[]).ok(), (2..18).collect::<Vec<u8>>());
    let failure = client.receive().failure();
    assert!(failure.starts_with("RemoteException(exc=RuntimeError('"), "{failure}");
    assert!(failure.contains(expected), "{failure}");
    // The session stays lost, the connection does not: a new session works.
    let commands = [client.copy_out(1)];
    assert!(client.batch(&commands, &[]).failure().contains(expected));
    let free = [format!("SessionFree({})", client.session(0))];
    client.batch(&free, &[]).ok();
    add_one_works(&mut client);
    assert_eq!(other.batch(&exec, &[]).ok(), (3..19).collect::<Vec<u8>>());
}

#[test]
fn empty_batch_is_answered_with_nothing() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    for _ in 0..3 {
        assert!(client.batch(&[], &[]).ok().is_empty());
    }
}

#[test]
fn refused_requests_leave_the_connection_in_step() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    for (request, status, words) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", 404, "/batch"),
        ("GET /batch HTTP/1.1\r\nHost: h\r\n\r\n", 405, "POST"),
        ("POST /batch HTTP/1.1\r\nHost: h\r\n\r\n", 411, "length"),
    ] {
        client.stream.write_all(request.as_bytes()).unwrap();
        let reply = client.receive();
        assert_eq!(reply.status, status, "{request}");
        assert!(reply.text().contains(words), "{}", reply.text());
    }
    // The answer to HEAD is a head alone, and the next request's answer comes right behind it.
    client.stream.write_all(b"HEAD /batch HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    assert!(client.receive_head().starts_with("HTTP/1.1 405 "));
    add_one_works(&mut client);
    // Something that is no envelope is told so, and so is text that is no list of commands.
    let head = "POST /batch HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello";
    client.stream.write_all(head.as_bytes()).unwrap();
    let reply = client.receive();
    assert_eq!((reply.status, reply.text().contains("bad body")), (400, true), "{}", reply.text());
    client.stream.write_all(&request_of(&body_of("[BufferFree(", &[]))).unwrap();
    let failure = client.receive().failure();
    assert!(failure.contains("bad command text: byte 12"), "{failure}");
    add_one_works(&mut Client::connect(server.address(), "b"));
}

#[test]
fn chunked_and_pipelined_requests_are_answered_in_order() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let properties = format!("[GetProperties({})]", client.session(0));
    let mut requests =
        b"POST /batch HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    // Chunks of seven bytes, so that they end inside of headers, names and text.
    for chunk in body_of(&properties, &[&[7; 20_000]]).chunks(7) {
        requests.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        requests.extend_from_slice(&[chunk, b"\r\n"].concat());
    }
    requests.extend_from_slice(b"0\r\n\r\n");
    requests.extend_from_slice(&request_of(&body_of("[]", &[])));
    client.stream.write_all(&requests).unwrap();
    assert!(client.receive().text().starts_with("RemoteProperties("));
    assert!(client.receive().ok().is_empty());
}

#[test]
fn slow_requests_are_told_so_and_idle_connections_are_left_alone() {
    let server = Server::builder().arg("--head-timeout=0.3").arg("--body-timeout=0.3").start();
    let mut idle = Client::connect(server.address(), "idle");
    add_one_works(&mut idle);
    let request = request_of(&body_of("[]", &[]));
    // In the head, in the first header of the body, in the text.
    for length in [1, 30, request.len() - 30, request.len() - 1] {
        let mut slow = Client::connect(server.address(), "slow");
        slow.stream.write_all(&request[..length]).unwrap();
        let reply = slow.receive();
        assert_eq!(reply.status, 408, "after {length} bytes: {}", reply.text());
        assert_eq!(std::io::Read::read(&mut slow.stream, &mut [0]).unwrap(), 0, "it closes");
    }
    add_one_works_again(&mut idle);
}

#[test]
fn client_that_expects_continue_is_told_to() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let body = body_of("[]", &[]);
    let head = format!(
        "POST /batch HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(client.receive_head(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.stream.write_all(&body).unwrap();
    assert!(client.receive().ok().is_empty());
}

#[test]
fn properties_are_exactly_what_the_stock_client_knows() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let commands = [format!("GetProperties({})", client.session(0))];
    let text = String::from_utf8(client.batch(&commands, &[]).ok()).unwrap();
    assert_eq!(
        text,
        "RemoteProperties(real_device='CPU', renderer=('tinygrad.renderer.cstyle', \
         'ClangRenderer', ()), offset_supported=True, graph_supported=True, \
         graph_supports_multi=True, ib_gid=None)"
    );
}

#[test]
fn kernel_runs_on_memory_of_its_session() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    add_one_works(&mut client);
    let timed = [client.exec("add1", ADD_ONE, &[1], true)];
    let seconds: f64 = String::from_utf8(client.batch(&timed, &[]).ok()).unwrap().parse().unwrap();
    assert!((0.0..1.0).contains(&seconds), "{seconds}");
}

#[test]
fn failing_command_leaves_the_ones_after_it_running() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let bytes = [7; 16];
    let commands = [
        client.alloc(1, 16),
        client.alloc(2, 1 << 60),
        client.copy_in(1, &bytes),
        client.copy_out(2),
    ];
    let failure = client.batch(&commands, &[&bytes]).failure();
    assert!(failure.contains("command 1 (BufferAlloc): out of memory"), "{failure}");
    assert!(failure.contains("(and 1 later command failed)"), "{failure}");
    let out = [client.copy_out(1)];
    assert_eq!(client.batch(&out, &[]).ok(), bytes);
    // What was not made says why, until the client gives up its name.
    let out = [client.copy_out(2)];
    assert!(client.batch(&out, &[]).failure().contains("the buffer was not made: out of memory"));
    let free = [format!("BufferFree({}, buffer_num=2)", client.session(0))];
    client.batch(&free, &[]).ok();
    assert!(client.batch(&free, &[]).failure().contains("unknown buffer 2"));
}

#[test]
fn endless_kernel_costs_its_own_session_only() {
    let server = Server::builder().arg("--kernel-timeout").arg("0.5").start();
    kernel_harms_only_itself(&server, ENDLESS, "kernel ran past the limit");
}

#[test]
fn kernel_writing_to_address_0_costs_its_own_session_only() {
    let server = Server::start();
    let source = "void bad(int* data0) { *(volatile int*)(data0[0] * 0ul) = 1; }";
    kernel_harms_only_itself(&server, source, "memory access outside");
}

#[test]
fn kernel_calling_open_costs_its_own_session_only() {
    let server = Server::start();
    // The constant's bytes are `mov eax, 2; syscall; ret`, which is open(0, ...): a kernel has no
    // way to write instructions, but may jump into the middle of one.
    let source = "static unsigned long gadget(void) { return 0xc3050f00000002b8ul; }\n\
                  void bad(int* data0) {\n\
                  const volatile unsigned char* p = (const volatile unsigned char*)gadget;\n\
                  while (!(p[0] == 0xb8 && p[1] == 2 && p[5] == 0x0f)) { p++; }\n\
                  ((void (*)(long, long))p)(0, 0);\n}";
    kernel_harms_only_itself(&server, source, "forbidden system call");
}

#[test]
fn source_that_names_a_function_of_the_system_does_not_load() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let source = "int open(const char*, int);\nvoid bad(int* data0) { data0[0] = open(\"/\", 0); }";
    let commands = [client.program("bad", source)];
    let failure = client.batch(&commands, &[source.as_bytes()]).failure();
    assert!(failure.contains("open"), "{failure}");
    add_one_works(&mut client);
}

#[test]
fn source_that_includes_a_file_learns_nothing() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let hostname = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    for source in [
        "#include \"/etc/hostname\"\nvoid bad(int* data0) {}",
        "%:include \"/etc/hostname\"\nvoid bad(int* data0) {}",
        "#inc\\\nlude \"/etc/hostname\"\nvoid bad(int* data0) {}",
        "__asm__(\".incbin \\\"/etc/hostname\\\"\");\nvoid bad(int* data0) {}",
    ] {
        let commands = [client.program("bad", source)];
        let failure = client.batch(&commands, &[source.as_bytes()]).failure();
        assert!(hostname.trim().is_empty() || !failure.contains(hostname.trim()), "{failure}");
        assert!(!failure.contains("No such file"), "{failure}");
    }
    add_one_works(&mut client);
}

const HALF_AN_UPLOAD: &str = include_str!("client/half_upload.py");

#[test]
fn client_killed_in_mid_upload_leaves_nothing_behind() {
    let server = Server::start();
    // A first client, so that what is made once and kept is part of the baseline.
    add_one_works(&mut Client::connect(server.address(), "first"));
    let mut client = Client::connect(server.address(), "asks");
    wait_until("the first client's session has ended", || Holdings::of(server.pid()).children == 0);
    client.batch(&[], &[]).ok();
    let baseline = Holdings::of(server.pid());
    let upload = Command::new("python3")
        .args(["-c", HALF_AN_UPLOAD, &server.address().to_string()])
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut upload) = upload else {
        skip("all of it", "no python3");
        return;
    };
    let mut said = [0; 4];
    std::io::Read::read_exact(upload.stdout.as_mut().unwrap(), &mut said).unwrap();
    wait_until("the server holds what was uploaded", || {
        Holdings::of(server.pid()).memory_bytes > baseline.memory_bytes + (100 << 20)
    });
    upload.kill().unwrap();
    upload.wait().unwrap();
    let killed = Instant::now();
    baseline.wait_until_back(server.pid());
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    client.batch(&[], &[]).ok();
}

/// Uploads a blob of so many bytes, a piece at a time, into a buffer, and checks that no more
/// memory is used than that of the buffer and a little.
fn upload_needs_no_memory_beside_its_buffer(server: &Server, bytes: u64) {
    let mut client = Client::connect(server.address(), "a");
    let alloc = [client.alloc(1, bytes)];
    client.batch(&alloc, &[]).ok();
    let piece: Vec<u8> = (0..=255).cycle().take(4 << 20).collect();
    let mut most = 0;
    let mut look = || most = most.max(support::holdings::resident_bytes(server.pid()));
    client.upload(1, bytes, &piece, &mut look);
    look();
    println!("{} MiB of which {} MiB were beside the buffer", most >> 20, (most - bytes) >> 20);
    assert!(most < bytes + (300 << 20), "{} MiB for {} MiB", most >> 20, bytes >> 20);
    let view = format!(
        "BufferOffset({}, buffer_num=3, size=65536, offset={}, sbuffer_num=1)",
        client.session(0),
        bytes - 65536
    );
    let out = [view, client.copy_out(3)];
    assert!(client.batch(&out, &[]).ok() == piece[..65536]);
}

#[test]
fn upload_beyond_the_staging_memory_needs_none_beside_its_buffer() {
    // Room for the buffer and for most of a second one while the blob arrives.
    let server = Server::builder().arg("--staging-memory=64M").arg("--cpu-memory=1000M").start();
    upload_needs_no_memory_beside_its_buffer(&server, 512 << 20);
    // Nothing is charged twice for ever: there is room for another.
    let mut client = Client::connect(server.address(), "b");
    let alloc = [client.alloc(1, 450 << 20)];
    client.batch(&alloc, &[]).ok();
}

#[test]
#[ignore = "takes 4 GiB of memory"]
fn upload_of_4_gib_needs_no_memory_beside_its_buffer() {
    upload_needs_no_memory_beside_its_buffer(&Server::start(), 4 << 30);
}

#[test]
fn memory_kept_for_the_next_upload_goes_when_none_comes() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    let bytes = 24 << 20;
    let alloc = [client.alloc(1, bytes), client.alloc(2, 4)];
    client.batch(&alloc, &[]).ok();
    // A worker that is being started may be counted as a second server: wait for its first work.
    let work = [client.copy_in(2, b"work"), client.copy_out(2)];
    client.batch(&work, &[b"work"]).ok();
    let resident = || support::holdings::resident_bytes(server.pid());
    let before = resident();
    for byte in 1..=3 {
        let blob = vec![byte; 24 << 20];
        let copy = [client.copy_in(1, &blob)];
        client.batch(&copy, &[&blob]).ok();
    }
    assert!(resident() > before + bytes + (12 << 20), "nothing is kept");
    wait_until("only the buffer's memory is left", || resident() < before + bytes + (12 << 20));
    let out = [client.copy_out(1)];
    assert!(client.batch(&out, &[]).ok() == vec![3; 24 << 20]);
}

#[test]
fn client_that_leaves_during_an_endless_kernel_is_cleaned_up() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    send_endless(&mut client);
    wait_until("the kernel runs", || Holdings::of(server.pid()).children == 1);
    drop(client);
    wait_until("its worker is gone", || Holdings::of(server.pid()).children == 0);
}

#[test]
fn session_is_reached_from_every_connection() {
    let server = Server::start();
    let mut first = Client::connect(server.address(), "shared");
    add_one_works(&mut first);
    // The kernel spreads connections over shards; among many, some land on another shard.
    for _ in 0..16 {
        let mut other = Client::connect(server.address(), "shared");
        let out = [other.copy_out(1)];
        assert_eq!(other.batch(&out, &[]).ok(), (1..17).collect::<Vec<u8>>());
        let bytes: Vec<u8> = (0..16).collect();
        let copy = [other.copy_in(1, &bytes), other.exec("add1", ADD_ONE, &[1], true)];
        other.batch(&copy, &[&bytes]).ok();
        let unknown = [other.copy_out(9)];
        assert!(other.batch(&unknown, &[]).failure().contains("unknown buffer 9"));
    }
    let out = [first.copy_out(1)];
    assert_eq!(first.batch(&out, &[]).ok(), (1..17).collect::<Vec<u8>>());
}

#[test]
fn small_calls_beside_a_full_speed_upload_are_not_starved() {
    let server = Server::builder().arg("--shards").arg("1").start();
    let mut bulk = Client::connect(server.address(), "bulk");
    let alloc = [bulk.alloc(1, 64 << 20)];
    bulk.batch(&alloc, &[]).ok();
    let blob = vec![1; 64 << 20];
    let text = format!("[{}]", bulk.copy_in(1, &blob));
    let body = body_of(&text, &[&blob]);
    let mut small = Client::connect(server.address(), "small");
    let finished = std::sync::atomic::AtomicBool::new(false);
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let head = format!(
                "POST /batch HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            for _ in 0..24 {
                bulk.stream.write_all(head.as_bytes()).unwrap();
                bulk.stream.write_all(&body).unwrap();
                bulk.receive().ok();
            }
            finished.store(true, std::sync::atomic::Ordering::Release);
        });
        while !finished.load(std::sync::atomic::Ordering::Acquire) {
            let begun = Instant::now();
            small.batch(&[], &[]).ok();
            times.push(begun.elapsed());
        }
    });
    times.sort();
    let p90 = times[times.len() * 9 / 10];
    println!(
        "{} calls beside the upload, median {:?}, p90 {p90:?}",
        times.len(),
        times[times.len() / 2]
    );
    // An executor that looks at its sockets only when it is idle takes 100 to 200 ms for each.
    assert!(p90 < Duration::from_millis(50), "{p90:?}");
}

/// The cores that a server's compilers may run on, as its thread for them says.
fn cores_of_compilers(server: &Server) -> Vec<BTreeSet<usize>> {
    let tasks = read_of_tasks(server.pid(), "status");
    let compile = tasks.iter().filter(|status| status.starts_with("Name:\tcompile\n"));
    let cores = |status: &String| {
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        outboard::cores::parse(list.expect("Linux says").trim()).expect("a list")
    };
    compile.map(cores).collect()
}

#[test]
fn compilers_leave_the_core_of_a_shard_that_serves_others() {
    let cores = outboard::cores::allowed().expect("cores are known");
    let (Some(core), true) = (cores.first(), cores.len() > 1) else {
        return skip("compilers' cores", "there is one core only");
    };
    let server = Server::builder().args(["--shards=1", &format!("--cores={core}")]).start();
    let mut client = Client::connect(server.address(), "compiles");
    let mut sources = (0..).map(|n| format!("{ADD_ONE}/* {n} */"));
    let mut compile = || {
        let source = sources.next().unwrap();
        let program = [client.program("add1", &source)];
        client.batch(&program, &[source.as_bytes()]).ok();
        cores_of_compilers(&server)
    };
    assert_eq!(compile(), std::slice::from_ref(&cores), "nobody else is there");
    let mut other = Client::connect(server.address(), "other");
    let others: BTreeSet<_> = cores.iter().copied().filter(|other| other != core).collect();
    wait_for("compilers are elsewhere", || {
        other.batch(&[], &[]).ok();
        let now = compile();
        if now == std::slice::from_ref(&others) { Ok(()) } else { Err(now) }
    });
    wait_for("compilers are everywhere again", || {
        let now = compile();
        if now == std::slice::from_ref(&cores) { Ok(()) } else { Err(now) }
    });
}

#[test]
fn many_connections_with_pauses_all_get_answers() {
    let server = Server::start();
    // An executor that parks with runnable tasks leaves some of these without an answer; the
    // client's time limit on reads is what fails then.
    std::thread::scope(|scope| {
        for connection in 0..32 {
            let server = &server;
            scope.spawn(move || {
                let mut client = Client::connect(server.address(), &format!("n{connection}"));
                let properties = [format!("GetProperties({})", client.session(0))];
                for round in 0..100_u64 {
                    client.batch(&properties, &[]).ok();
                    // Pauses of different lengths, so that the shards go idle at every point.
                    let pause = Duration::from_micros((round * 37 + connection * 11) % 700);
                    let until = Instant::now() + pause;
                    while Instant::now() < until {
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
}

#[test]
fn idle_server_uses_no_processor_time() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    add_one_works(&mut client);
    let used = || -> u64 {
        support::holdings::read_of_tasks(server.pid(), "schedstat")
            .iter()
            .map(|stat| stat.split(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    };
    // What the last batch left to do is done within two looks at it, and what it left free is given
    // back some seconds later.
    let mut before = used();
    wait_until("the server has come to rest", || {
        let now = used();
        let rests = now == before;
        before = now;
        std::thread::sleep(Duration::from_millis(2500));
        rests
    });
    let before = used();
    // The span that is measured.
    std::thread::sleep(Duration::from_secs(10));
    let nanoseconds = used() - before;
    assert!(nanoseconds < 1_000_000, "{nanoseconds} ns in 10 s");
    add_one_works_again(&mut client);
}

fn add_one_works_again(client: &mut Client) {
    let commands = [client.exec("add1", ADD_ONE, &[1], false), client.copy_out(1)];
    assert_eq!(client.batch(&commands, &[]).ok(), (2..18).collect::<Vec<u8>>());
}

#[test]
fn drain_finishes_what_runs_and_exits_with_0() {
    let server = Server::builder().arg("--kernel-timeout").arg("20").start();
    let mut client = Client::connect(server.address(), "a");
    let idle = Client::connect(server.address(), "idle");
    // A kernel that runs until the client says so would need a second writer; one that takes a
    // good part of a second is still running when the signal comes.
    let source = "void slow(volatile unsigned* data0) {\n\
                  for (unsigned i = 0; i < 300000000u; i++) { data0[0] = i; }\n}";
    let prepare = [client.alloc(1, 16), client.program("slow", source)];
    client.batch(&prepare, &[source.as_bytes()]).ok();
    let exec = [client.exec("slow", source, &[1], true)];
    client.send(&exec, &[]);
    wait_until("the kernel runs", || worker_ticks(server.pid()) > 0);
    server.signal(Signal::TERM);
    let reply = client.receive();
    assert!(reply.text().parse::<f64>().unwrap() > 0.0);
    assert_eq!(server.wait(Duration::from_secs(30)).code(), Some(0));
    drop(idle);
}

#[test]
fn second_server_on_an_address_refuses_to_start() {
    let server = Server::start();
    let address = server.address().to_string();
    let second = Command::new(env!("CARGO_BIN_EXE_outboard"))
        .args(["serve", "--listen", &address])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{words}");
    assert!(words.contains(&format!("{address}: Address already in use")), "{words}");
    add_one_works(&mut Client::connect(server.address(), "a"));
}

#[test]
fn second_signal_ends_at_once() {
    let server = Server::start();
    let mut client = Client::connect(server.address(), "a");
    send_endless(&mut client);
    wait_until("the kernel runs", || worker_ticks(server.pid()) > 0);
    server.signal(Signal::TERM);
    wait_until("it stops accepting", || std::net::TcpStream::connect(server.address()).is_err());
    let begun = Instant::now();
    server.signal(Signal::INT);
    assert_eq!(server.wait(Duration::from_secs(30)).code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(2));
}
