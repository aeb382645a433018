//! `http/*`: requests through the connection value; time per request, its response's head included.

mod support;

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use outboard::config::HttpLimits;
use outboard::http::{Connection, Event, Status};
use support::spelling::{Session, batch};
use support::wall::{self, measure};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A request head as the stock client spells it.
fn head(framing: &str) -> String {
    format!(
        "POST /batch HTTP/1.1\r\nHost: 127.0.0.1:6667\r\nAccept-Encoding: identity\r\n\
         {framing}\r\n\r\n"
    )
}

fn request(body: &[u8]) -> Vec<u8> {
    let head = head(&format!("Content-Length: {}", body.len()));
    [head.as_bytes(), body].concat()
}

fn chunked(body: &[u8], chunk_bytes: usize) -> Vec<u8> {
    let mut request = head("Transfer-Encoding: chunked").into_bytes();
    for chunk in body.chunks(chunk_bytes) {
        request.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

/// Feeds `input` as it arrives, in pieces cut at multiples of `piece_bytes`, and answers each
/// request. Returns how many there were, and how much body.
fn serve(
    connection: &mut Connection,
    input: &[u8],
    piece_bytes: usize,
    out: &mut Vec<u8>,
) -> (usize, usize) {
    let (mut from, mut to) = (0, 0);
    let (mut requests, mut body_bytes) = (0, 0);
    while to < input.len() {
        to = input.len().min(to + piece_bytes);
        loop {
            let step = connection.next(&input[from..to]);
            from += step.consumed;
            match step.event {
                Event::Body(bytes) => body_bytes += bytes.len(),
                Event::End => {
                    requests += 1;
                    out.clear();
                    connection.respond(Status::Ok, 0, out);
                }
                Event::NeedMore => break,
                Event::Refused(refusal) => panic!("refused: {refusal:?}"),
                Event::Request(_) => {}
            }
        }
    }
    (requests, body_bytes)
}

fn served(
    group: &mut BenchmarkGroup<'_, WallTime>,
    shape: &str,
    expected: (usize, usize),
    input: &[u8],
    piece_bytes: usize,
) {
    let mut connection = Connection::new(HttpLimits::default());
    let mut out = Vec::new();
    measure(group, shape, expected.0, input.len(), || {
        let got = serve(&mut connection, black_box(input), piece_bytes, &mut out);
        assert_eq!(got, expected);
    });
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("http/request");
    // The name and the length of a blob, and a text of one command.
    let text = batch(&[Session::new(0, 7).copy_out(16)]);
    let body = [&[0; 40], text.as_bytes()].concat();
    let whole = request(&body);
    served(&mut group, "whole", (1, body.len()), &whole, usize::MAX / 2);
    served(&mut group, "empty_body", (1, 0), &request(b""), usize::MAX / 2);
    let many = whole.repeat(16);
    served(&mut group, "pipelined_x16", (16, 16 * body.len()), &many, usize::MAX / 2);
    served(&mut group, "chunked_whole", (1, body.len()), &chunked(&body, 1 << 20), 1 << 20);
    served(&mut group, "chunked_16_bytes", (1, body.len()), &chunked(&body, 16), 1 << 20);
    served(&mut group, "pieces_of_64_bytes", (1, body.len()), &whole, 64);
    served(&mut group, "pieces_of_1_byte", (1, body.len()), &whole, 1);
    group.finish();
}

criterion_group! {
    name = benches;
    config = wall::criterion();
    targets = requests
}
criterion_main!(benches);
