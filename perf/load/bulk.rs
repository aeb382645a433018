//! Large copies: 256 MiB in each direction, from one server to another, and one upload of many
//! gigabytes.

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::json;

use crate::client::{self, Client, list};
use crate::process::MemoryWatch;
use crate::{Result, Results, Setting, median, repeated, report_times};

pub(crate) const MIB: usize = 1 << 20;
/// Of one bulk copy: far beyond caches and socket buffers.
pub(crate) const BULK_BYTES: usize = 256 * MIB;
/// The buffer that is copied to and from.
const BUFFER: usize = 100;
/// A small one.
const SMALL: usize = 101;
const SMALL_BYTES: usize = 4 << 10;
/// What a long upload is written in.
const PIECE_BYTES: usize = 16 * MIB;

/// A byte for each page, so that bytes in the wrong place are seen.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at >> 12).to_le_bytes()[0] ^ at.to_le_bytes()[0]).collect()
}

/// Makes the buffer; returns requests that fill it and that read it, and what it is filled with.
/// The reply to the first waits for the copy, since it reads a small buffer afterwards, which has
/// to be there.
pub(crate) fn requests(client: &mut Client, bytes: usize) -> Result<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let session = client.session.clone();
    let alloc = client.batch(&list(&[client::buffer_alloc(&session, BUFFER, bytes)]));
    client.request(&alloc)?;
    client.expect_bytes(bytes);
    let pattern = pattern(bytes);
    let (data, name) = client.blob(&pattern);
    let text = [client::copy_in(&session, BUFFER, &name), client::copy_out(&session, 1)];
    let fill = client.batch_with(&data, &list(&text));
    let read = client.batch(&list(&[client::copy_out(&session, BUFFER)]));
    Ok((fill, read, pattern))
}

/// Fills a buffer and reads it back, again and again: the seconds of each copy in, and out.
pub(crate) fn there_and_back(
    client: &mut Client,
    setting: &Setting,
    fill: &[u8],
    read: &[u8],
    expected: &[u8],
) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut outward = Vec::new();
    let inward = repeated(setting.counts, || {
        let began = Instant::now();
        client.request(fill)?;
        let inward = began.elapsed();
        let began = Instant::now();
        let reply = client.request(read)?;
        outward.push(began.elapsed().as_secs_f64());
        if reply != expected {
            return Err("the bytes that came back are not those that were sent".into());
        }
        Ok(inward)
    })?;
    Ok((inward, outward))
}

/// One large copy in each direction, into a buffer that has its pages already and into a new one.
pub(crate) fn measure(client: &mut Client, setting: &Setting, results: &mut Results) -> Result<()> {
    let (fill, read, pattern) = requests(client, BULK_BYTES)?;
    // The first copy finds no pages at all. A server may use two pieces of memory in turn: both
    // have their pages after the second.
    let began = Instant::now();
    client.request(&fill)?;
    let mut first = vec![began.elapsed().as_secs_f64()];
    client.request(&fill)?;
    let (mut inward, mut outward) = there_and_back(client, setting, &fill, &read, &pattern)?;
    let session = client.session.clone();
    let text =
        [client::buffer_free(&session, BUFFER), client::buffer_alloc(&session, BUFFER, BULK_BYTES)];
    let renew = client.batch(&list(&text));
    let mut fresh = repeated(setting.counts, || {
        client.request(&renew)?;
        let began = Instant::now();
        client.request(&fill)?;
        Ok(began.elapsed())
    })?;
    let mut report = |name: &str, seconds: &mut Vec<f64>| {
        let speed = BULK_BYTES as f64 / median(seconds) / 1e9;
        results.insert(name.to_owned(), json!(speed));
    };
    report("copy_in_256_mib_gbs", &mut inward);
    report("copy_in_256_mib_first_gbs", &mut first);
    report("copy_in_256_mib_fresh_gbs", &mut fresh);
    report("copy_out_256_mib_gbs", &mut outward);
    Ok(())
}

/// One large copy from a server to another, again and again, into the same buffer and into a new
/// one each time. It is over when the other has it: a small buffer that it is asked for comes
/// behind it.
pub(crate) fn transfer(setting: &Setting, to: SocketAddr) -> Result<Results> {
    let mut near = Client::connect(setting.address, setting.spin)?;
    let mut far = Client::connect(to, setting.spin)?;
    let (fill, _, pattern) = requests(&mut near, BULK_BYTES)?;
    let (near_session, far_session) = (near.session.clone(), far.session.clone());
    near.prepare_kernel(&near_session)?;
    far.prepare_kernel(&far_session)?;
    let (_, read, _) = requests(&mut far, BULK_BYTES)?;
    near.request(&fill)?;
    let transfer = near.batch(&list(&[format!(
        "Transfer(session={near_session}, buffer_num={BUFFER}, dsession={far_session}, \
         dbuffer_num={BUFFER})"
    )]));
    let settle = far.batch(&list(&[client::copy_out(&far_session, 1)]));
    let mut once = |far: &mut Client| {
        let began = Instant::now();
        near.request(&transfer)?;
        far.request(&settle)?;
        Ok(began.elapsed())
    };
    // As in `measure`, the memory of the first two copies is new to the process.
    let first = once(&mut far)?.as_secs_f64();
    let second = once(&mut far)?.as_secs_f64();
    let mut times = repeated(setting.counts, || once(&mut far))?;
    let text = [
        client::buffer_free(&far_session, BUFFER),
        client::buffer_alloc(&far_session, BUFFER, BULK_BYTES),
    ];
    let renew = far.batch(&list(&text));
    let mut fresh = repeated(setting.counts, || {
        far.request(&renew)?;
        once(&mut far)
    })?;
    if far.request(&read)? != pattern {
        return Err("the bytes that came to the other server are not those that were sent".into());
    }
    let mut results = Results::new();
    let mut report = |name: &str, seconds: f64| {
        results.insert(name.to_owned(), json!(BULK_BYTES as f64 / seconds / 1e9));
    };
    report("transfer_256_mib_first_gbs", first);
    report("transfer_256_mib_second_gbs", second);
    report("transfer_256_mib_gbs", median(&mut times));
    report("transfer_256_mib_slowest_gbs", times.last().copied().unwrap_or_default());
    report("transfer_256_mib_fresh_gbs", median(&mut fresh));
    small_transfers(&mut near, &mut far, setting, &mut results)?;
    Ok(results)
}

/// One small copy after the other, each beside a batch without commands to the server that sends.
fn small_transfers(
    near: &mut Client,
    far: &mut Client,
    setting: &Setting,
    results: &mut Results,
) -> Result<()> {
    let (near_session, far_session) = (near.session.clone(), far.session.clone());
    for (client, session) in [(&mut *near, &near_session), (far, &far_session)] {
        let alloc = client.batch(&list(&[client::buffer_alloc(session, SMALL, SMALL_BYTES)]));
        client.request(&alloc)?;
    }
    let transfer = near.batch(&list(&[format!(
        "Transfer(session={near_session}, buffer_num={SMALL}, dsession={far_session}, \
         dbuffer_num={SMALL})"
    )]));
    let empty = near.batch("[]");
    let (mut copies, mut round_trips) = (Vec::new(), Vec::new());
    for turn in 0..setting.counts.round_trips {
        for (request, times) in [(&transfer, &mut copies), (&empty, &mut round_trips)] {
            let began = Instant::now();
            near.request(request)?;
            // The first ones open connections.
            if turn >= setting.counts.round_trips / 10 {
                times.push(began.elapsed());
            }
        }
    }
    report_times("transfer_4_kib", &mut copies, results);
    report_times("round_trip", &mut round_trips, results);
    Ok(())
}

/// One blob of many gigabytes into a buffer of that size, read back and compared, while the
/// server's memory is watched. Of the figures, `extra` is what there was at most beyond the buffer.
pub(crate) fn upload(setting: &Setting, bytes: usize) -> Result<Results> {
    let pid = setting.pid.ok_or("the server's process is needed (--pid)")?;
    let mut client = Client::connect(setting.address, setting.spin)?;
    let session = client.session.clone();
    client.prepare_kernel(&session)?;
    let alloc = client.batch(&list(&[client::buffer_alloc(&session, BUFFER, bytes)]));
    let mut piece = pattern(PIECE_BYTES);
    let mut back = piece.clone();
    let mut results = Results::new();
    let mut report = |name: &str, bytes_moved: usize, began: Instant, peak: (f64, f64)| {
        let speed = bytes_moved as f64 / began.elapsed().as_secs_f64() / 1e9;
        results.insert(format!("{name}_gbs"), json!(speed));
        let extra = |bytes_more: f64| json!((bytes_more - bytes as f64) / MIB as f64);
        results.insert(format!("{name}_extra_mib"), extra(peak.0));
        results.insert(format!("{name}_extra_of_machine_mib"), extra(peak.1));
    };

    let watch = MemoryWatch::start(pid);
    client.request(&alloc)?;
    let began = Instant::now();
    send_upload(&mut client, bytes, &mut piece)?;
    report("upload", bytes, began, watch.peak()?);

    // The buffer is there already: what comes on top is counted from here.
    let watch = MemoryWatch::start(pid);
    let read = client.batch(&list(&[client::copy_out(&session, BUFFER)]));
    let began = Instant::now();
    client.send(&read)?;
    let mut number = 0_u64;
    let length = client.reply_in_pieces(&mut back, |got| {
        piece[..8].copy_from_slice(&number.to_le_bytes());
        number += 1;
        match got == &piece[..got.len()] {
            true => Ok(()),
            false => Err(format!("piece {number} came back as something else").into()),
        }
    })?;
    if length != bytes {
        return Err(format!("{length} bytes came back of {bytes}").into());
    }
    let (resident, machine) = watch.peak()?;
    report("download", bytes, began, (resident + bytes as f64, machine + bytes as f64));
    Ok(results)
}

/// The request, piece by piece; each piece begins with its number.
fn send_upload(client: &mut Client, bytes: usize, piece: &mut [u8]) -> Result<()> {
    let session = client.session.clone();
    let (blob_head, name) = client.blob_head(bytes);
    let text = [client::copy_in(&session, BUFFER, &name), client::copy_out(&session, 1)];
    let (text, _) = client.blob(list(&text).as_bytes());
    let head = client.head(blob_head.len() + bytes + text.len());
    client.send(&[&head, &blob_head[..]].concat())?;
    for (number, begin) in (0_u64..).zip((0..bytes).step_by(piece.len())) {
        piece[..8].copy_from_slice(&number.to_le_bytes());
        client.send(&piece[..piece.len().min(bytes - begin)])?;
    }
    client.send(&text)?;
    client.reply()?;
    Ok(())
}
