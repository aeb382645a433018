//! What is counted. Each case runs once before it is counted, so that memory which is kept from one
//! batch to the next is there already.

use outboard::config::HttpLimits;
use outboard::engine::Batch;
use outboard::http::{Connection, Event, Status};

use crate::count::ALLOCATIONS;
use crate::support::corpus;
use crate::support::null::{Bench, parse, parse_with, replayable};
use crate::support::parser::Parser;
use crate::support::spelling::{Session, batch};
use crate::{Result, outboard_measured};

/// The work of a case, ready to run.
pub(crate) type Running<'a> = dyn FnMut() + 'a;

/// Counts the work that it is given.
type Counter<'a> = dyn FnMut(&mut Running<'_>) + 'a;

/// A case: makes what it needs, then hands its work to the given function.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    prepare: fn(&mut Counter<'_>),
}

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "wire/parse/program_exec_x1000",
        prepare: |count| parse_text(&batch(&vec![session().exec(false); 1_000]), count),
    },
    Case {
        name: "wire/parse/tape_program_exec_x100",
        prepare: |count| {
            let exec = session().exec(false).replace("(session=", "( session=");
            parse_text(&batch(&vec![exec; 100]), count);
        },
    },
    Case {
        name: "wire/parse/graph_alloc_100_kernels",
        prepare: |count| parse_text(&batch(&[session().graph(1, 100)]), count),
    },
    Case { name: "wire/parse/recorded_jit", prepare: |count| parse_recorded("jit", count) },
    Case { name: "wire/parse/recorded_symjit", prepare: |count| parse_recorded("symjit", count) },
    Case { name: "http/request/small_x1000", prepare: http_requests },
    Case {
        name: "engine/program_exec_x1000",
        prepare: |count| run_batches(&[batch(&vec![session().exec(false); 1_000])], count),
    },
    Case {
        name: "engine/buffer_alloc_free_x1000",
        prepare: |count| {
            // Numbers count up, as the stock client's do; it also levels what hash seeds change.
            let pair = |number| [session().alloc(number, 4_096), session().free(number)];
            run_batches(&[batch(&(100..600).flat_map(pair).collect::<Vec<_>>())], count);
        },
    },
    Case {
        name: "engine/copy_out_x100",
        prepare: |count| run_batches(&vec![batch(&[session().copy_out(0)]); 100], count),
    },
    Case {
        name: "engine/graph_exec_10_kernels_x100",
        prepare: |count| run_batches(&[batch(&vec![session().graph_exec(0, false); 100])], count),
    },
    Case { name: "engine/replay_multitensor", prepare: replay },
];

/// Runs a case, as valgrind sees it, and prints its allocations.
pub(crate) fn run(name: &str) -> Result<()> {
    let case = CASES.iter().find(|case| case.name == name).ok_or("there is no such case")?;
    (case.prepare)(&mut |work| outboard_measured(work));
    println!("{}", ALLOCATIONS.count());
    Ok(())
}

fn session() -> Session {
    Session::new(0, 7)
}

/// Does some work, then does it again and counts.
fn twice(work: &mut Running<'_>, count: &mut Counter<'_>) {
    work();
    count(work);
}

fn parse_text(text: &str, count: &mut Counter<'_>) {
    let mut parser = Parser::default();
    twice(&mut || assert!(parser.parse(text) > 0), count);
}

fn parse_recorded(name: &str, count: &mut Counter<'_>) {
    let mut parser = Parser::default();
    let batches = corpus::load(name);
    let mut work = || {
        for batch in &batches {
            parser.parse(&batch.text);
        }
    };
    twice(&mut work, count);
}

fn http_requests(count: &mut Counter<'_>) {
    let request = format!(
        "POST /batch HTTP/1.1\r\nHost: 127.0.0.1:6667\r\nAccept-Encoding: identity\r\n\
         Content-Length: 100\r\n\r\n{}",
        "b".repeat(100)
    );
    let mut connection = Connection::new(HttpLimits::default());
    let mut out = Vec::with_capacity(256);
    let mut work = || {
        for _ in 0..1_000 {
            let mut input = request.as_bytes();
            loop {
                let step = connection.next(input);
                input = &input[step.consumed..];
                match step.event {
                    Event::Body(_) | Event::Request(_) => {}
                    Event::End => break,
                    Event::NeedMore | Event::Refused(_) => panic!("a whole request was shown"),
                }
            }
            out.clear();
            connection.respond(Status::Ok, 4, &mut out);
        }
    };
    twice(&mut work, count);
}

/// Batches on null devices. They are parsed before anything is counted.
fn run_batches(texts: &[String], count: &mut Counter<'_>) {
    let mut bench = Bench::ready(&session());
    let parsed = || -> Vec<Batch<'_>> { texts.iter().map(|text| parse(text)).collect() };
    let mut rounds = vec![parsed(), parsed()];
    let mut work = || {
        for batch in rounds.pop().into_iter().flatten() {
            bench.expect(batch);
        }
    };
    twice(&mut work, count);
}

/// A recording from its first batch to the end of its sessions, parsing included.
fn replay(count: &mut Counter<'_>) {
    let batches = replayable("multitensor");
    let mut bench = Bench::new();
    let mut blobs = vec![Vec::new(); 2];
    blobs.iter_mut().for_each(|blobs| blobs.extend(batches.iter().map(|batch| batch.blobs())));
    let mut work = || {
        for (batch, blobs) in batches.iter().zip(blobs.pop().into_iter().flatten()) {
            bench.expect(parse_with(&batch.text, blobs));
        }
        bench.release();
    };
    twice(&mut work, count);
}
