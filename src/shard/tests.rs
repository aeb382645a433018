//! What the shards rely on in their driver and their ring, and that neither of the executor's two
//! traps can be sprung: it may park while tasks are runnable, which it does where it wants to leave
//! them before it has run any, and it may not look at its sockets while tasks are.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use glommio::Placement;
use socket2::SockRef;

use super::driver::Reactor;
use super::executor;
use super::fair::Claim;
use super::io::{Bell, Doorbell, Listener, Received, Socket, listen, local_address};
use crate::config::RingLimits;
use crate::device::shared::{Budget, Heap};
use crate::engine::Output;
use crate::identity::{Access, Rules};

/// Well above what any of these takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(15);

/// Takes the core for a while.
fn work(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {}
}

/// Runs a test as the first task of a shard. An executor must not be joined when it hangs.
fn run<F, T>(limits: RingLimits, what: &'static str, test: T)
where
    F: Future<Output = ()>,
    T: FnOnce(Rc<Reactor>) -> F + Send + 'static,
{
    let (done, finished) = mpsc::channel();
    let body = move || async move {
        let reactor = Reactor::start(limits).unwrap();
        reactor.counted(test(Rc::clone(&reactor))).await;
        reactor.stop();
        done.send(()).unwrap();
    };
    let executor = executor(Placement::Unbound).spawn(body).unwrap();
    assert!(finished.recv_timeout(LIMIT).is_ok(), "{what}");
    executor.join().unwrap();
}

/// The two ends of a connection over loopback.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    near.set_read_timeout(Some(LIMIT)).unwrap();
    (near, listener.accept().unwrap().0)
}

/// Has an operation begin, which cannot be over yet.
async fn begin<F: Future>(mut operation: Pin<&mut F>) {
    std::future::poll_fn(|cx| {
        assert!(operation.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
}

/// Waits until `condition` holds, letting other tasks run.
async fn until(reactor: &Rc<Reactor>, condition: impl Fn() -> bool) {
    while !condition() {
        reactor.sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn executor_with_runnable_tasks_does_not_park() {
    run(RingLimits::default(), "the executor parked with runnable tasks", |reactor| async move {
        let busy = || async {
            for _ in 0..200 {
                work(Duration::from_micros(300));
                futures_lite::future::yield_now().await;
            }
        };
        let tasks: Vec<_> = (0..8).map(|_| reactor.spawn(busy())).collect();
        for task in tasks {
            task.await;
        }
    });
}

#[test]
fn executor_never_wants_to_leave_its_tasks() {
    run(RingLimits::default(), "the executor's own timer ran out", |_| async {
        // Longer than an executor's tasks run by default before it looks at its own rings.
        work(Duration::from_millis(300));
        assert!(!glommio::executor().need_preempt());
    });
}

#[test]
fn tasks_that_wake_each_other_do_not_keep_the_ring_from_being_looked_at() {
    run(RingLimits::default(), "a timer was never looked at", |reactor| async move {
        let over = Rc::new(Cell::new(false));
        let seen = Rc::clone(&over);
        let restless = reactor.spawn(async move {
            while !seen.get() {
                futures_lite::future::yield_now().await;
            }
        });
        reactor.sleep(Duration::from_millis(5)).await;
        over.set(true);
        restless.await;
    });
}

#[test]
fn connection_of_another_identity_does_not_stand_behind_many() {
    const MANY: u32 = 200;
    run(RingLimits::default(), "somebody was never called", |reactor| async move {
        let [theirs, mine] = ["10.0.0.1", "10.0.0.2"].map(|address| {
            let trusted = vec![address.parse().unwrap()];
            let access = Access::load(&Rules { trusted, ..Rules::default() }).unwrap();
            let claim = Claim::new(true);
            claim.identity.set(access.of_address(address.parse().unwrap()).unwrap());
            claim
        });
        let (far, near) = UnixStream::pair().unwrap();
        // How often others have gone on, and when something was said to the one.
        let (runs, said) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(None)));
        let crowd: Vec<_> = (0..MANY)
            .map(|number| {
                let (runs, said, far) = (Rc::clone(&runs), Rc::clone(&said), far.try_clone());
                let claim = Claim::new(true);
                claim.identity.set(theirs.identity.get());
                reactor.spawn_fair(claim, async move {
                    for _ in 0..10 {
                        work(Duration::from_micros(20));
                        runs.update(|runs| runs + 1);
                        if number == MANY / 2 && said.get().is_none() {
                            said.set(Some(runs.get()));
                            far.as_ref().unwrap().write_all(&[1]).unwrap();
                        }
                        futures_lite::future::yield_now().await;
                    }
                })
            })
            .collect();
        let mut bell = Doorbell::new(&reactor, near.into());
        let heard = Rc::clone(&runs);
        let one = reactor.spawn_fair(mine, async move {
            assert!(bell.rung().await);
            heard.get()
        });
        let between = one.await - said.get().unwrap();
        for task in crowd {
            task.await;
        }
        assert!(between < 30, "{between} others went on before");
        assert_eq!(runs.get(), MANY * 10);
    });
}

#[test]
fn task_that_gives_way_lets_a_socket_be_heard() {
    const RINGS: usize = 50;
    let (mut far, near) = UnixStream::pair().unwrap();
    let (heard, hearing) = mpsc::channel();
    let ringing = std::thread::spawn(move || {
        let begun = Instant::now();
        for _ in 0..RINGS {
            far.write_all(&[1]).unwrap();
            hearing.recv_timeout(LIMIT).unwrap();
        }
        begun.elapsed() / u32::try_from(RINGS).unwrap()
    });
    run(RingLimits::default(), "the busy task never ended", |reactor| async move {
        let over = Rc::new(Cell::new(false));
        let busy = {
            let (over, reactor) = (Rc::clone(&over), Rc::clone(&reactor));
            reactor.clone().spawn(async move {
                while !over.get() {
                    work(Duration::from_micros(100));
                    reactor.turn().await;
                }
            })
        };
        let mut doorbell = Doorbell::new(&reactor, near.into());
        for _ in 0..RINGS {
            assert!(doorbell.rung().await);
            heard.send(()).unwrap();
        }
        over.set(true);
        busy.await;
    });
    let each = ringing.join().unwrap();
    // Where a task only yields, the executor looks at its own sockets every 100 ms.
    assert!(each < Duration::from_millis(20), "{each:?} to hear a ring");
}

#[test]
fn thread_that_rings_the_bell_wakes_a_sleeping_shard() {
    let (bell, wait) = Bell::pair().unwrap();
    let waker: Waker = Arc::new(bell).into();
    let (asleep, sleeping) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for _ in 0..50 {
            sleeping.recv_timeout(LIMIT).unwrap();
            waker.wake_by_ref();
        }
    });
    run(RingLimits::default(), "a ring was not heard", |reactor| async move {
        let mut bell = Doorbell::new(&reactor, wait);
        for _ in 0..50 {
            asleep.send(()).unwrap();
            assert!(bell.rung().await);
        }
    });
    thread.join().unwrap();
}

#[test]
fn timers_end_in_order_and_dropped_ones_do_not() {
    run(RingLimits::default(), "a timer never ended", |reactor| async move {
        let ended = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = [30, 10, 20]
            .into_iter()
            .map(|milliseconds| {
                let (ended, sleep) =
                    (Rc::clone(&ended), reactor.sleep(Duration::from_millis(milliseconds)));
                reactor.spawn(async move {
                    sleep.await;
                    ended.borrow_mut().push(milliseconds);
                })
            })
            .collect();
        drop(reactor.sleep(Duration::ZERO));
        for task in tasks {
            task.await;
        }
        assert_eq!(*ended.borrow(), [10, 20, 30]);
    });
}

#[test]
fn receive_without_a_free_buffer_gets_memory_of_its_own() {
    let limits = RingLimits { chunks: 2, chunk_bytes: 4096, ..RingLimits::default() };
    let (mut peers, sockets): (Vec<_>, Vec<_>) = (0..8).map(|_| connection()).unzip();
    for peer in &mut peers {
        peer.write_all(b"request").unwrap();
    }
    run(limits, "a receive waits for a buffer that another one holds", |reactor| async move {
        let mut held = Vec::new();
        for socket in sockets {
            let received = Socket::new(&reactor, socket.into(), false).receive().await.unwrap();
            assert_eq!(&received[..], b"request");
            held.push(received);
        }
        let chunks = held.iter().filter(|held| matches!(held, Received::Chunk(_))).count();
        assert_eq!(chunks, 2);
        // Buffers that come back are used again.
        drop(held);
        for peer in &mut peers {
            peer.write_all(b"again").unwrap();
        }
    });
}

#[test]
fn buffers_come_back_however_a_receive_ends() {
    let limits = RingLimits { chunks: 2, chunk_bytes: 4096, ..RingLimits::default() };
    let (mut peer, socket) = connection();
    run(limits, "a receive never ended", |reactor| async move {
        let mut socket = Socket::new(&reactor, socket.into(), false);
        for round in 0..20 {
            if round % 2 == 0 {
                // Dropped before anything came: cancelled.
                futures_lite::future::or(async { drop(socket.receive().await) }, reactor.turn())
                    .await;
            }
            if round % 4 == 1 {
                // Dropped with its outcome, which is lost.
                peer.write_all(b"lost").unwrap();
                let mut receive = Box::pin(socket.receive());
                begin(receive.as_mut()).await;
                reactor.turn().await;
                drop(receive);
            }
            peer.write_all(b"request").unwrap();
            let received = socket.receive().await.unwrap();
            assert_eq!(
                (&received[..], matches!(received, Received::Chunk(_))),
                (&b"request"[..], true)
            );
        }
    });
}

#[test]
fn reply_goes_out_with_the_next_receive() {
    let (mut peer, socket) = connection();
    let answering = std::thread::spawn(move || {
        let mut reply = [0; 5];
        for _ in 0..20 {
            peer.read_exact(&mut reply).unwrap();
            assert_eq!(&reply, b"reply");
            peer.write_all(b"request").unwrap();
        }
    });
    run(RingLimits::default(), "a reply stayed where it was", |reactor| async move {
        let mut socket = Socket::new(&reactor, socket.into(), false);
        for _ in 0..20 {
            socket.cork(b"reply".to_vec());
            assert_eq!(&socket.receive().await.unwrap()[..], b"request");
        }
    });
    answering.join().unwrap();
}

#[test]
fn reply_to_a_peer_that_is_gone_ends_the_receive_behind_it() {
    let (peer, socket) = connection();
    rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
    drop(peer);
    run(RingLimits::default(), "the receive never ended", |reactor| async move {
        let mut socket = Socket::new(&reactor, socket.into(), false);
        socket.cork(b"reply".to_vec());
        assert!(socket.receive().await.is_err());
    });
}

#[test]
fn reply_that_goes_out_in_part_is_not_taken_for_a_receive() {
    let (mut peer, socket) = connection();
    let leaving = std::thread::spawn(move || peer.read_exact(&mut [0]).unwrap());
    run(RingLimits::default(), "the receive never ended", |reactor| async move {
        let mut socket = Socket::new(&reactor, socket.into(), false);
        socket.cork(vec![1; 64 << 20]);
        assert!(socket.receive().await.is_err());
    });
    leaving.join().unwrap();
}

#[test]
fn outputs_arrive_whole_with_and_without_a_copy() {
    const BYTES: usize = 3 << 20;
    for in_place in [false, true] {
        let (mut peer, socket) = connection();
        let reading = std::thread::spawn(move || {
            let mut received = vec![0; 4 + BYTES];
            peer.read_exact(&mut received).unwrap();
            received
        });
        run(RingLimits::default(), "a send never ended", move |reactor| async move {
            let mut socket = Socket::new(&reactor, socket.into(), in_place);
            let output = Rc::new(Output::Owned(
                (0..BYTES).map(|i| u8::try_from(i % 251).unwrap()).collect(),
            ));
            socket.cork(b"head".to_vec());
            for start in (0..BYTES).step_by(1 << 20) {
                socket.send_output(&output, start..start + (1 << 20), 1).await.unwrap();
            }
            // The kernel lets go of the memory once the peer has it.
            until(&reactor, || Rc::strong_count(&output) == 1).await;
        });
        let received = reading.join().unwrap();
        assert_eq!(&received[..4], b"head");
        assert!(
            received[4..]
                .iter()
                .enumerate()
                .all(|(i, byte)| *byte == u8::try_from(i % 251).unwrap())
        );
    }
}

#[test]
fn memory_of_a_dropped_receive_is_kept_until_the_kernel_is_done() {
    let (mut peer, socket) = connection();
    run(RingLimits::default(), "the memory never came back", |reactor| async move {
        let budget = Arc::new(Budget::new(1 << 20));
        let heap = Heap::new(Arc::clone(&budget));
        let mut socket = Socket::new(&reactor, socket.into(), false);
        let range = heap.alloc(4096).unwrap();
        let mut receive = Box::pin(socket.receive_landing(range.landing(0..4096)));
        begin(receive.as_mut()).await;
        reactor.turn().await;
        drop(range);
        drop(receive);
        assert_eq!(budget.used(), 4096, "the operation is still in the kernel");
        until(&reactor, || budget.used() == 0).await;
        // What comes now is not lost in the cancelled one.
        peer.write_all(b"later").unwrap();
        assert_eq!(&socket.receive().await.unwrap()[..], b"later");
    });
}

#[test]
fn more_operations_than_the_ring_holds_all_end() {
    let limits = RingLimits { submissions: 4, completions: 8, ..RingLimits::default() };
    exchange_with_many(limits);
    // Only one socket can be watched at a time.
    exchange_with_many(RingLimits { busy_poll: Duration::from_millis(2), ..limits });
}

fn exchange_with_many(limits: RingLimits) {
    let (peers, sockets): (Vec<_>, Vec<_>) = (0..64).map(|_| connection()).unzip();
    let answering = std::thread::spawn(move || {
        for _ in 0..8 {
            for mut peer in &peers {
                peer.read_exact(&mut [0; 5]).unwrap();
            }
            for mut peer in &peers {
                peer.write_all(b"request").unwrap();
            }
        }
    });
    run(limits, "an operation never ended", |reactor| async move {
        let tasks: Vec<_> = sockets
            .into_iter()
            .map(|socket| {
                let mut socket = Socket::new(&reactor, socket.into(), false);
                reactor.spawn(async move {
                    for _ in 0..8 {
                        socket.cork(b"reply".to_vec());
                        assert_eq!(&socket.receive().await.unwrap()[..], b"request");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
    });
    answering.join().unwrap();
}

#[test]
fn socket_that_is_watched_is_heard_while_another_task_always_works() {
    let limits = RingLimits { busy_poll: Duration::from_secs(5), ..RingLimits::default() };
    let (mut peer, socket) = connection();
    run(limits, "the socket was not heard", |reactor| async move {
        let is_over = Rc::new(Cell::new(false));
        let busy = {
            let (reactor, is_over) = (Rc::clone(&reactor), Rc::clone(&is_over));
            reactor.clone().spawn(async move {
                while !is_over.get() {
                    reactor.turn().await;
                }
            })
        };
        let mut socket = Socket::new(&reactor, socket.into(), false);
        for _ in 0..20 {
            peer.write_all(b"request").unwrap();
            assert_eq!(&socket.receive().await.unwrap()[..], b"request");
        }
        is_over.set(true);
        busy.await;
    });
}

#[test]
fn bytes_after_a_receive_that_was_given_up_while_watched_are_received() {
    let limits = RingLimits { busy_poll: Duration::from_secs(5), ..RingLimits::default() };
    let (mut peer, socket) = connection();
    run(limits, "a receive never ended", |reactor| async move {
        let mut socket = Socket::new(&reactor, socket.into(), false);
        for _ in 0..3 {
            let sleep = reactor.sleep(Duration::from_millis(3));
            let given_up = async {
                drop(socket.receive().await);
                panic!("nothing was sent");
            };
            futures_lite::future::or(sleep, given_up).await;
        }
        peer.write_all(b"request").unwrap();
        assert_eq!(&socket.receive().await.unwrap()[..], b"request");
        drop(peer);
        assert!(socket.receive().await.unwrap().is_empty(), "the end");
    });
}

#[test]
fn shard_that_watches_its_ring_hears_and_then_sleeps() {
    let limits = RingLimits { busy_poll: Duration::from_millis(2), ..RingLimits::default() };
    let (mut peer, socket) = connection();
    let answering = std::thread::spawn(move || {
        for pause in [0, 1, 10, 0, 1, 10] {
            work(Duration::from_millis(pause));
            peer.write_all(b"request").unwrap();
            peer.read_exact(&mut [0; 5]).unwrap();
        }
    });
    run(limits, "a request was not heard", |reactor| async move {
        let mut socket = Socket::new(&reactor, socket.into(), false);
        for _ in 0..6 {
            assert_eq!(&socket.receive().await.unwrap()[..], b"request");
            socket.cork(b"reply".to_vec());
            socket.flush().await.unwrap();
        }
    });
    answering.join().unwrap();
}

#[test]
fn connection_from_this_machine_is_not_paced() {
    run(RingLimits::default(), "nobody was accepted", |reactor| async move {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let _near = TcpStream::connect(local_address(&listener).unwrap()).unwrap();
        let mut listener = Listener::new(&reactor, listener);
        let socket = listener.accept(LIMIT, LIMIT).await.unwrap();
        let name = SockRef::from(&*socket.fd).tcp_congestion().unwrap();
        assert!(name.starts_with(b"reno\0"), "{}", String::from_utf8_lossy(&name));
    });
}
