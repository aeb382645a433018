//! Requests of a client that takes what it can get: many at once, long compilations, sessions and
//! graphs that are made only to be thrown away.

use crate::client::{self, Client, list};
use crate::{Result, server};

/// Requests that are sent before the first reply is read.
const PIPELINED: usize = 256;
/// Sources of one batch: more than the compilers of most machines take at once.
const SOURCES: usize = 4;
/// Statements of one source. A C compiler takes some tenths of a second for them.
const STATEMENTS: usize = 200;

/// Sends many batches without commands at once, then reads the replies.
pub(crate) fn pipelined(client: &mut Client) -> Result<u64> {
    let requests = client.batch("[]").repeat(PIPELINED);
    client.send(&requests)?;
    client.replies(PIPELINED)?;
    Ok(PIPELINED as u64)
}

/// Has new sources compiled, which nobody has compiled before; `number` makes them new.
pub(crate) fn compile(client: &mut Client, number: u64) -> Result<()> {
    let session = client.session.clone();
    let (mut data, mut text) = (Vec::new(), Vec::new());
    for source in 0..SOURCES as u64 {
        let source = long_source(number * SOURCES as u64 + source);
        let (blob, hash) = client.blob(source.as_bytes());
        data.extend_from_slice(&blob);
        for command in ["ProgramAlloc", "ProgramFree"] {
            text.push(format!("{command}(session={session}, name='long', datahash='{hash}')"));
        }
    }
    let request = client.batch_with(&data, &list(&text));
    client.request(&request).map(drop)
}

fn long_source(number: u64) -> String {
    let salt = std::process::id();
    let mut source = format!(
        "void long_kernel(int* restrict data0, int* restrict data1) {{ \
         int a = data1[0] + {number}, b = data1[1] ^ {salt};\n"
    );
    for statement in 0..STATEMENTS {
        source += &format!("a = (a * {} + b) ^ (b >> {});\n", statement + 3, statement % 13 + 1);
        source += &format!("data0[{statement}] = a; b += data1[{}];\n", statement % 97);
    }
    source + "}\n"
}

/// Records a graph and throws it away.
pub(crate) fn record(client: &mut Client, hash: &str, kernels: usize) -> Result<Vec<u8>> {
    let session = client.session.clone();
    let record = server::graph_alloc(client, hash, 0, kernels)?;
    let free = format!("GraphFree(session={session}, graph_num=0)");
    Ok(client.batch(&list(&[record, free])))
}

/// Opens a session that computes, so that it has a process, and ends it.
pub(crate) fn open_and_end(client: &mut Client) -> Result<()> {
    let session = client.another_session()?;
    let (data, name) = client.blob(&41_i32.to_le_bytes());
    let text = [
        client::buffer_alloc(&session, 0, 4),
        client::copy_in(&session, 0, &name),
        client::copy_out(&session, 0),
    ];
    let request = client.batch_with(&data, &list(&text));
    client.request(&request)?;
    let request = client.batch(&list(&[client::session_free(&session)]));
    client.request(&request).map(drop)
}
