//! Cost against the size of batches and blobs, and the number of sessions and buffers.

use std::time::Instant;

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::bulk::{MIB, there_and_back};
use crate::client::{self, Client, expect_int, list};
use crate::server::{launch_batch, round_trips, time_launches};
use crate::{Counts, Result, Results, Setting, median, process, repeated};

/// Commands in one batch while buffers are made.
const COMMANDS_PER_BATCH: usize = 5_000;
/// Numbers of buffers begin here, beyond those of the kernel.
const FIRST_BUFFER: usize = 10;

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Axis {
    Batch,
    Blob,
    Buffers,
    Sessions,
}

/// One object per size, in a list named `points`.
pub(crate) fn measure(setting: &Setting, of: Axis, up_to: usize) -> Result<Results> {
    let mut client = Client::connect(setting.address, setting.spin)?;
    let session = client.session.clone();
    let hash = client.prepare_kernel(&session)?;
    let points = match of {
        Axis::Batch => batches(&mut client, &hash, setting, up_to)?,
        Axis::Blob => blobs(&mut client, setting, up_to)?,
        Axis::Buffers => buffers(&mut client, setting, up_to)?,
        Axis::Sessions => sessions(&mut client, setting, up_to)?,
    };
    Ok(Results::from_iter([("points".to_owned(), Value::from(points))]))
}

fn point(size: usize) -> Results {
    Results::from_iter([("size".to_owned(), json!(size))])
}

/// Launches in one batch, which ends with reading the result.
fn batches(client: &mut Client, hash: &str, setting: &Setting, up_to: usize) -> Result<Vec<Value>> {
    let session = client.session.clone();
    let mut points = Vec::new();
    for count in [1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000].into_iter().filter(|n| *n <= up_to)
    {
        let request = launch_batch(client, &session, hash, count);
        let mut times = time_launches(client, setting, &request)?;
        let mut point = point(count);
        let whole = median(&mut times) * 1e6;
        point.insert("batch_us".into(), json!(whole));
        point.insert("command_us".into(), json!(whole / count as f64));
        points.push(point.into());
    }
    Ok(points)
}

/// One blob in each direction, by its size.
fn blobs(client: &mut Client, setting: &Setting, up_to: usize) -> Result<Vec<Value>> {
    let session = client.session.clone();
    let sizes = [4, 64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, MIB, 4 * MIB];
    let sizes = sizes.into_iter().chain([16 * MIB, 64 * MIB, 256 * MIB]);
    let mut points = Vec::new();
    for (number, bytes) in (FIRST_BUFFER..).zip(sizes.filter(|bytes| *bytes <= up_to)) {
        client.expect_bytes(bytes);
        let alloc = client.batch(&list(&[client::buffer_alloc(&session, number, bytes)]));
        client.request(&alloc)?;
        let bytes_sent: Vec<u8> = (0..bytes).map(|at| (at / 3).to_le_bytes()[0]).collect();
        let (data, name) = client.blob(&bytes_sent);
        let text = [client::copy_in(&session, number, &name), client::copy_out(&session, 1)];
        let fill = client.batch_with(&data, &list(&text));
        let read = client.batch(&list(&[client::copy_out(&session, number)]));
        client.request(&fill)?;
        let (mut inward, mut outward) = there_and_back(client, setting, &fill, &read, &bytes_sent)?;
        let mut point = point(bytes);
        for (name, times) in [("in", &mut inward), ("out", &mut outward)] {
            let seconds = median(times);
            point.insert(format!("{name}_us"), json!(seconds * 1e6));
            point.insert(format!("{name}_gbs"), json!(bytes as f64 / seconds / 1e9));
        }
        points.push(point.into());
        let free = client.batch(&list(&[client::buffer_free(&session, number)]));
        client.request(&free)?;
    }
    Ok(points)
}

/// Buffers of four bytes in one session: making them, using one of them, memory, freeing them.
fn buffers(client: &mut Client, setting: &Setting, up_to: usize) -> Result<Vec<Value>> {
    let session = client.session.clone();
    let memory = || setting.pid.map(process::resident_bytes);
    let mut points = Vec::new();
    for count in [10, 100, 1_000, 10_000, 100_000].into_iter().filter(|count| *count <= up_to) {
        let numbers: Vec<_> = (FIRST_BUFFER..FIRST_BUFFER + count).collect();
        let before = memory();
        let text = |number: &usize| client::buffer_alloc(&session, *number, 4);
        let alloc_us = in_batches(client, &numbers, text)?;
        let mut point = point(count);
        point.insert("alloc_us".into(), json!(alloc_us));
        if let Some((before, after)) = before.zip(memory()) {
            point.insert("resident_bytes_each".into(), json!((after - before) / count as f64));
        }
        let middle = FIRST_BUFFER + count / 2;
        let read = client.batch(&list(&[client::copy_out(&session, middle)]));
        expect_int(client.request(&read)?, 0)?;
        round_trips(client, "copy_out", &read, setting, &mut point)?;
        let text = |number: &usize| client::buffer_free(&session, *number);
        point.insert("free_us".into(), json!(in_batches(client, &numbers, text)?));
        points.push(point.into());
    }
    Ok(points)
}

/// Microseconds for each of many commands, sent in batches.
fn in_batches(
    client: &mut Client,
    numbers: &[usize],
    command: impl Fn(&usize) -> String,
) -> Result<f64> {
    let mut seconds = 0.0;
    for part in numbers.chunks(COMMANDS_PER_BATCH) {
        let text: Vec<_> = part.iter().map(&command).collect();
        let request = client.batch(&list(&text));
        let began = Instant::now();
        client.request(&request)?;
        seconds += began.elapsed().as_secs_f64();
    }
    Ok(seconds * 1e6 / numbers.len() as f64)
}

/// Sessions of one connection: beginning one, one at work among idle ones, a batch that launches in
/// all, memory.
fn sessions(client: &mut Client, setting: &Setting, up_to: usize) -> Result<Vec<Value>> {
    let memory = || setting.pid.map(process::resident_bytes);
    let mut sessions = Vec::new();
    let mut points = Vec::new();
    for count in [1, 2, 4, 8, 16, 32, 64].into_iter().filter(|count| *count <= up_to) {
        let before = memory();
        let begun = sessions.len();
        let mut begin_seconds = Vec::new();
        while sessions.len() < count {
            let session = client.another_session()?;
            let began = Instant::now();
            let hash = client.prepare_kernel(&session)?;
            let run = launch_batch(client, &session, &hash, 1);
            expect_int(client.request(&run)?, 42)?;
            begin_seconds.push(began.elapsed().as_secs_f64());
            sessions.push((session, hash));
        }
        let mut point = point(count);
        point.insert("begin_ms".into(), json!(median(&mut begin_seconds) * 1e3));
        if let Some((before, after)) = before.zip(memory()) {
            let each = (after - before) / (count - begun) as f64;
            point.insert("resident_bytes_each".into(), json!(each));
        }
        let read = client.batch(&list(&[client::copy_out(&sessions[0].0, 1)]));
        round_trips(client, "copy_out", &read, setting, &mut point)?;
        let launches: Vec<_> =
            sessions.iter().map(|(session, hash)| client::launch(session, hash, true)).collect();
        let request = client.batch(&list(&launches));
        let counts = Counts { repeats: setting.counts.repeats * 10, ..setting.counts };
        let mut times = repeated(counts, || {
            let began = Instant::now();
            client.request(&request)?;
            Ok(began.elapsed())
        })?;
        point.insert("launch_in_each_us".into(), json!(median(&mut times) * 1e6 / count as f64));
        points.push(point.into());
    }
    let free: Vec<_> = sessions.iter().map(|(session, _)| client::session_free(session)).collect();
    let request = client.batch(&list(&free));
    client.request(&request)?;
    Ok(points)
}
