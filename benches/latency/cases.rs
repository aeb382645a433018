//! What is asked of the server: a row for each command that a server can answer by itself.
//!
//! Absent: `BatchTransfer`, `BlobLanding`, `BufferIOVAS` and `IBConnect`, which need a second
//! server. Requests are the same bytes every time, so what a row makes it also takes away, and the
//! other way round.

use outboard::blob::Digest;

use crate::support::loopback;
use crate::support::spelling::{DATA, SOURCE, Session, batch};

/// Adds one to the integer that it finds.
const KERNEL: &[u8] = b"void E_16_4(int* restrict data0, int* restrict data1) \
    { *(data0+0) = ((*(data1+0))+1); }\n";
/// Kernels of the graph.
const GRAPH_KERNELS: usize = 10;

/// One row.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Whole requests that come first and do not count.
    pub(crate) before: Vec<Vec<u8>>,
    /// The one that is timed.
    pub(crate) request: Vec<u8>,
    /// Whole requests that come behind it and do not count.
    pub(crate) after: Vec<Vec<u8>>,
}

/// All rows.
pub(crate) struct Cases {
    /// What makes the buffers, the program and the graph that they use.
    pub(crate) prepare: Vec<u8>,
    pub(crate) all: Vec<Case>,
}

impl Cases {
    pub(crate) fn new() -> Cases {
        let (near, far) = (Session::new(0, 7), Session::new(1, 7));
        let prepare = [
            near.alloc(0, 4),
            near.alloc(1, 4),
            near.alloc(2, 4 << 10),
            near.alloc(3, 1 << 20),
            far.alloc(2, 4 << 10),
            near.program(),
            near.graph(0, GRAPH_KERNELS),
            near.exec(false),
            near.copy_out(1),
        ];
        let mut all = whole(&near, &far);
        all.extend(lifetimes(&near));
        all.extend(session());
        all.sort_by_key(|case| case.name);
        Cases { prepare: request(&[source()], &prepare), all }
    }
}

/// Commands that leave nothing behind.
fn whole(near: &Session, far: &Session) -> Vec<Case> {
    let alone = |name, commands: &[String]| Case {
        name,
        before: Vec::new(),
        request: request(&[], commands),
        after: Vec::new(),
    };
    let copy_in = |name, buffer, bytes| Case {
        request: request(&[(DATA, &vec![5; bytes])], &[near.copy_in(buffer)]),
        ..alone(name, &[])
    };
    vec![
        alone("batch/empty", &[]),
        copy_in("copy_in/4_bytes", 0, 4),
        copy_in("copy_in/4_kib", 2, 4 << 10),
        copy_in("copy_in/1_mib", 3, 1 << 20),
        alone("copy_out/4_bytes", &[near.copy_out(0)]),
        alone("copy_out/4_kib", &[near.copy_out(2)]),
        alone("copy_out/1_mib", &[near.copy_out(3)]),
        alone("event_wait/one_device", &[near.event(near, 1), near.wait(1)]),
        alone("event_wait/two_devices", &[near.event(far, 1), far.wait(1)]),
        alone("get_properties/known", &[near.properties()]),
        alone("graph_exec/10_kernels", &[near.graph_exec(0, false)]),
        alone("graph_exec/10_kernels_wait", &[near.graph_exec(0, true)]),
        alone("program_exec/1", &[near.exec(false)]),
        alone("program_exec/1_wait", &[near.exec(true)]),
        alone("program_exec/100", &vec![near.exec(false); 100]),
        alone("transfer/4_kib", &[near.transfer(2, far, 2)]),
    ]
}

/// Commands that make something, and those that take it away.
fn lifetimes(near: &Session) -> Vec<Case> {
    let only = |command: String| request(&[], &[command]);
    let mut cases = Vec::new();
    let mut pair = |names: [&'static str; 2], make: Vec<u8>, free: Vec<u8>| {
        cases.push(Case {
            name: names[0],
            before: Vec::new(),
            request: make.clone(),
            after: vec![free.clone()],
        });
        let (before, after) = (vec![make], Vec::new());
        cases.push(Case { name: names[1], before, request: free, after });
    };
    let free = || only(near.free(9));
    pair(["buffer_alloc/4_kib", "buffer_free/4_kib"], only(near.alloc(9, 4 << 10)), free());
    pair(["buffer_alloc/64_mib", "buffer_free/64_mib"], only(near.alloc(9, 64 << 20)), free());
    pair(["buffer_offset/view", "buffer_free/view"], only(near.offset(9, 64, 0, 2)), free());
    pair(
        ["graph_alloc/10_kernels", "graph_free/10_kernels"],
        only(near.graph(9, GRAPH_KERNELS)),
        only(near.graph_free(9)),
    );
    // The second count of the program that all rows use.
    pair(
        ["program_alloc/counted", "program_free/counted"],
        request(&[source()], &[near.program()]),
        only(near.program_free()),
    );
    cases
}

/// The first command and the last one of a session, and programs that were compiled before.
fn session() -> Vec<Case> {
    let fresh = Session::new(2, 7);
    let open = request(&[], &[fresh.properties()]);
    let free = request(&[], &[fresh.session_free()]);
    // A copy that is waited for: the device has begun its work.
    let used =
        request(&[(DATA, &[0; 4])], &[fresh.alloc(0, 4), fresh.copy_in(0), fresh.copy_out(0)]);
    let program = request(&[source()], &[fresh.program()]);
    vec![
        Case {
            name: "get_properties/first_of_session",
            before: Vec::new(),
            request: open,
            after: vec![free.clone()],
        },
        Case {
            name: "program_alloc/warm",
            before: vec![used.clone()],
            request: program.clone(),
            after: vec![free.clone()],
        },
        Case {
            name: "program_free/last",
            before: vec![used.clone(), program],
            request: request(&[], &[fresh.program_free()]),
            after: vec![free.clone()],
        },
        Case { name: "session_free/used", before: vec![used], request: free, after: Vec::new() },
    ]
}

fn source() -> (&'static str, &'static [u8]) {
    (SOURCE, KERNEL)
}

/// A whole request with blobs by their names in hexadecimal.
fn request(blobs: &[(&str, &[u8])], commands: &[String]) -> Vec<u8> {
    let named = |(name, bytes): &(&str, _)| {
        (Digest::from_hex(name.as_bytes()).expect("names are hexadecimal"), *bytes)
    };
    loopback::request(&blobs.iter().map(named).collect::<Vec<_>>(), &batch(commands))
}
