//! Clients that die with their sessions in any state.

use std::io::{Read as _, Write as _};

use crate::pick::Pick;
use crate::rig::{ADD, ENDLESS, SLOW, builder, dawdle, leave, leaves_nothing, many};
use crate::support::Server;
use crate::support::client::{Client, body_of, name_of, request_of};

/// What the client's sessions are at.
#[derive(Clone, Copy, Debug)]
enum State {
    Compiling,
    EndlessKernel,
    FreeingSessions,
    HoldsBuffers,
    HoldsPrograms,
    Reading,
    RunningGraph,
    Transferring,
    Uploading,
    WaitingForEvent,
}

const STATES: [State; 10] = [
    State::Compiling,
    State::EndlessKernel,
    State::FreeingSessions,
    State::HoldsBuffers,
    State::HoldsPrograms,
    State::Reading,
    State::RunningGraph,
    State::Transferring,
    State::Uploading,
    State::WaitingForEvent,
];

/// Words of one client's commands, for any of its sessions.
struct Words {
    nonce: String,
}

impl Words {
    fn key(&self, at: u64) -> String {
        format!("SessionKey('h', {at}, '{}')", self.nonce)
    }

    fn alloc(&self, at: u64, buffer: u64, bytes: u64) -> String {
        format!("BufferAlloc({buffer}, {bytes}, BufferSpec(), session={})", self.key(at))
    }

    fn program(&self, at: u64, name: &str, source: &str) -> String {
        let hash = name_of(source.as_bytes());
        format!("ProgramAlloc('{name}', '{hash}', session={})", self.key(at))
    }

    fn exec(&self, at: u64, name: &str, source: &str, wait: bool) -> String {
        let (hash, wait) = (name_of(source.as_bytes()), if wait { "True" } else { "False" });
        let key = self.key(at);
        format!("ProgramExec('{name}', '{hash}', (1,), (), None, None, {wait}, session={key})")
    }

    fn transfer(&self, from: u64, to: u64) -> String {
        format!("Transfer(1, {}, 2, session={})", self.key(to), self.key(from))
    }

    fn free(&self, at: u64) -> String {
        format!("SessionFree(session={})", self.key(at))
    }

    /// A graph of a slow kernel on 0, and copies to all others of what it wrote.
    fn graph(&self, sessions: u64) -> String {
        let kernel = format!(
            "GraphComputeItem({}, 'slow', '{}', (1,), (), {{}}, (), (0,), None, None)",
            self.key(0),
            name_of(SLOW.as_bytes())
        );
        let copies = (1..sessions).map(|to| self.transfer(0, to));
        let items: Vec<String> = [kernel].into_iter().chain(copies).collect();
        format!("GraphAlloc(1, ({},), (), {{}}, session={})", items.join(", "), self.key(0))
    }
}

/// Opens sessions, brings them into a state, and dies.
fn kill(server: &Server, seed: u64, sessions: u64, pick: &mut Pick) {
    let mut client = Client::connect(server.address(), "");
    let words = Words { nonce: format!("k{seed}") };
    let bytes = pick.of(&[16, 5000, 1 << 20, 40 << 20]);
    let mut prepare = Vec::new();
    for at in 0..sessions {
        prepare.extend([words.alloc(at, 1, bytes), words.alloc(at, 2, bytes)]);
        prepare.push(format!("BufferOffset(3, 8, 8, 1, session={})", words.key(at)));
        prepare.push(words.program(at, "slow", SLOW));
        prepare.push(format!("CopyOut(3, session={})", words.key(at)));
    }
    client.batch(&prepare, &[SLOW.as_bytes()]).ok();
    match pick.of(&STATES) {
        State::Compiling => {
            let source = ADD.replace("add(", &format!("add{seed}("));
            client.send(&[words.program(0, "add", &source)], &[source.as_bytes()]);
        }
        State::EndlessKernel => {
            let commands = [words.program(0, "bad", ENDLESS), words.exec(0, "bad", ENDLESS, true)];
            client.send(&commands, &[ENDLESS.as_bytes()]);
        }
        State::FreeingSessions => {
            let mut commands = vec![words.exec(0, "slow", SLOW, false)];
            commands.extend((1..sessions).map(|to| words.transfer(0, to)));
            commands.extend((0..sessions).map(|at| words.free(at)));
            client.send(&commands, &[]);
        }
        State::HoldsBuffers => {
            let blob = vec![1; usize::try_from(bytes.min(1 << 20)).unwrap()];
            let copy =
                format!("CopyIn(9, '{}', session={})", name_of(&blob), words.key(sessions - 1));
            let commands = [words.alloc(sessions - 1, 9, blob.len() as u64), copy];
            client.batch(&commands, &[&blob]).ok();
        }
        State::HoldsPrograms => {
            let commands = [words.program(0, "bad", ENDLESS), words.program(0, "twice", ENDLESS)];
            client.batch(&commands, &[ENDLESS.as_bytes()]).ok();
        }
        State::Reading => {
            client.send(&[format!("CopyOut(1, session={})", words.key(0))], &[]);
            let most = usize::try_from(bytes.min(100_000)).unwrap();
            let mut some = vec![0; pick.below(most)];
            client.stream.read_exact(&mut some).unwrap();
        }
        State::RunningGraph => {
            let runs = format!("GraphExec(1, (), {{}}, True, session={})", words.key(0));
            client.send(&[words.graph(sessions), runs], &[]);
        }
        State::Transferring => {
            let mut commands = vec![words.exec(0, "slow", SLOW, false)];
            commands.extend((1..sessions).map(|to| words.transfer(0, to)));
            client.send(&commands, &[]);
        }
        State::Uploading => {
            let blob = vec![1; usize::try_from(bytes.min(4 << 20)).unwrap()];
            let request = request_of(&body_of("[]", &[&blob]));
            let end = pick.below(request.len().min(1 << 16)) * (request.len() >> 16).max(1);
            client.stream.write_all(&request[..end]).unwrap();
        }
        State::WaitingForEvent => {
            client.send(&[format!("Wait(7, session={})", words.key(sessions - 1))], &[]);
        }
    }
    dawdle(pick);
    leave(client.stream, pick);
}

/// Kills clients with 1 to 3 sessions each, 2 on average.
fn kills(warm: u64, clients: u64, test: &str) {
    let server = builder().start();
    let run = |clients| {
        many(clients, test, |seed, pick| kill(&server, seed, 1 + seed % 3, pick));
    };
    let what = format!("{} sessions of {clients} clients killed", 2 * clients);
    leaves_nothing(&server, &what, || run(warm), || run(clients));
}

#[test]
fn killed_sessions_leave_nothing_behind() {
    kills(15, 45, "killed");
}

#[test]
#[ignore = "minutes, in release; see the head of main.rs"]
fn two_thousand_killed_sessions_leave_nothing_behind() {
    kills(300, 1002, "two_thousand -- --ignored");
}
