//! What the shards rely on in their executor, which has two traps: it may park while tasks are
//! runnable, and it may not look at its sockets while tasks are.

use std::cell::Cell;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use glommio::{ExecutorJoinHandle, Placement};

use super::executor;
use super::io::{Doorbell, Turnstile};

/// Well above what any of these takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(15);

/// Takes the core for a while.
fn work(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {}
}

/// Waits for an executor, which must not be joined when it hangs.
fn join(executor: ExecutorJoinHandle<()>, finished: &mpsc::Receiver<()>, what: &str) {
    assert!(finished.recv_timeout(LIMIT).is_ok(), "{what}");
    executor.join().unwrap();
}

#[test]
fn executor_with_runnable_tasks_does_not_park() {
    let (done, finished) = mpsc::channel();
    let executor = executor(Placement::Unbound)
        .spawn(move || async move {
            let busy = || async {
                for _ in 0..200 {
                    work(Duration::from_micros(300));
                    futures_lite::future::yield_now().await;
                }
            };
            let tasks: Vec<_> = (0..8).map(|_| glommio::spawn_local(busy())).collect();
            for task in tasks {
                task.await;
            }
            done.send(()).unwrap();
        })
        .unwrap();
    join(executor, &finished, "the executor parked with runnable tasks");
}

#[test]
fn task_at_the_turnstile_lets_a_socket_be_heard() {
    const RINGS: usize = 50;
    let (mut far, near) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let (done, finished) = mpsc::channel();
    let (heard, hearing) = mpsc::channel();
    let executor = executor(Placement::Unbound)
        .spawn(move || async move {
            let turnstile = Turnstile::open().await.unwrap();
            let over = Rc::new(Cell::new(false));
            let busy = {
                let over = Rc::clone(&over);
                glommio::spawn_local(async move {
                    while !over.get() {
                        work(Duration::from_micros(100));
                        turnstile.pass().await;
                    }
                })
            };
            let doorbell = Doorbell::new(near.into());
            for _ in 0..RINGS {
                assert!(doorbell.rung().await);
                heard.send(()).unwrap();
            }
            over.set(true);
            busy.await;
            done.send(()).unwrap();
        })
        .unwrap();
    let begun = Instant::now();
    for _ in 0..RINGS {
        far.write_all(&[1]).unwrap();
        hearing.recv_timeout(LIMIT).unwrap();
    }
    let each = begun.elapsed() / u32::try_from(RINGS).unwrap();
    join(executor, &finished, "the busy task never ended");
    // Where a task only yields, the executor looks at its sockets every 100 ms.
    assert!(each < Duration::from_millis(20), "{each:?} to hear a ring");
}
