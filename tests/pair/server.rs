//! The server's side: what a shard's tasks do, with the engine and the HTTP value driven directly.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use outboard::blob::Digest;
use outboard::config::{EnvelopeLimits, HttpLimits, WireLimits};
use outboard::engine::{
    Batch, Blob, Blobs, Cause, Errand, Home, Output, Owner, Progress, Reply, WaitFor,
};
use outboard::http::{self, BodyLength, Event, Status};
use outboard::wire::envelope::{self, Envelope};

use super::client::Parcel;
use super::command::Command;
use super::ledger::Ledger;
use super::model::{Begun, Causes, Finished, Place, Started};
use super::world::World;

/// Lets others run.
pub async fn turn() {
    struct Turn(bool);
    impl Future for Turn {
        type Output = ();
        fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
        }
    }
    Turn(false).await;
}

/// The command that a task is at, for whoever has to say that it will not be finished.
pub type InProgress = Rc<RefCell<Option<Started>>>;

/// Whose batch runs where.
#[derive(Clone)]
pub struct Runner {
    pub world: Rc<World>,
    pub home: usize,
    pub connection: usize,
    pub is_forwarded: bool,
    pub in_progress: InProgress,
}

/// A forwarded command's outcome, and what it should be.
type Forwarded = Rc<RefCell<Option<(Result<Vec<u8>, String>, Finished)>>>;

/// Bytes with their names.
pub type Named = Vec<(Digest, Vec<u8>)>;

/// A request's body as it arrives.
pub struct Body {
    envelope: Envelope,
    current: Option<(Digest, Vec<u8>)>,
    blobs: Named,
}

impl Body {
    pub fn new(length: BodyLength) -> Body {
        let bytes = match length {
            BodyLength::Chunked => None,
            BodyLength::Known(bytes) => Some(bytes),
        };
        let envelope = Envelope::new(EnvelopeLimits::default(), bytes);
        Body { envelope, current: None, blobs: Vec::new() }
    }

    pub fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut rest = bytes;
        loop {
            let step = self.envelope.next(rest).map_err(|error| error.to_string())?;
            let (taken, behind) = rest.split_at(step.consumed);
            rest = behind;
            match step.event {
                envelope::Event::BlobStart { digest, .. } => {
                    self.current = Some((digest, Vec::new()));
                }
                envelope::Event::Payload => {
                    self.current.as_mut().expect("begun").1.extend_from_slice(taken);
                }
                envelope::Event::BlobEnd => self.blobs.extend(self.current.take()),
                envelope::Event::NeedMore => return Ok(()),
            }
        }
    }

    /// The text, and the blobs before it.
    pub fn finish(mut self) -> Result<(Vec<u8>, Named), String> {
        self.take(&[])?;
        self.envelope.finish().map_err(|error| error.to_string())?;
        let (_, text) = self.blobs.pop().ok_or("no text")?;
        Ok((text, self.blobs))
    }
}

/// What became of a request that arrived.
enum Arrived {
    Batch(Vec<u8>, Named),
    Refused(Status),
    Closed,
}

/// One connection, from its first byte to its last.
pub async fn serve(runner: Runner) {
    let (world, index) = (Rc::clone(&runner.world), runner.connection);
    let mut http = http::Connection::new(HttpLimits::default());
    let mut input = Vec::new();
    loop {
        let arrived = arrive(&world, index, &mut http, &mut input).await;
        let (status, output) = match arrived {
            Arrived::Closed => return,
            Arrived::Refused(status) => {
                world.connection(index).arriving.pop_front();
                (status, Output::Empty)
            }
            Arrived::Batch(text, blobs) => {
                let parcel = world.connection(index).arriving.pop_front();
                let blobs = world.blobs(index, blobs);
                match parcel {
                    Some(parcel) => run_text(&runner, &text, blobs, &parcel).await,
                    None => return world.differs("a request that nobody has sent"),
                }
            }
        };
        let mut head = Vec::new();
        http.respond(status, output.bytes(), &mut head);
        world.connection(index).to_client.extend(head);
        if !send(&world, runner.home, index, output).await || http.closes() {
            return;
        }
    }
}

async fn arrive(
    world: &World,
    index: usize,
    http: &mut http::Connection,
    input: &mut Vec<u8>,
) -> Arrived {
    let mut body = None;
    loop {
        let step = http.next(input);
        let consumed = step.consumed;
        let mut needs_more = false;
        let mut outcome = None;
        match step.event {
            Event::Request(request) => {
                body = Some(Body::new(request.body));
                let mut head = Vec::new();
                http.write_continue(&mut head);
                world.connection(index).to_client.extend(head);
            }
            Event::Body(bytes) => {
                let taken = body.as_mut().map_or(Ok(()), |body| body.take(bytes));
                outcome = taken.err().map(|_| Arrived::Refused(Status::BadRequest));
            }
            Event::End => {
                let finished = body.take().map(Body::finish);
                outcome = Some(match finished {
                    Some(Ok((text, blobs))) => Arrived::Batch(text, blobs),
                    _ => Arrived::Refused(Status::BadRequest),
                });
            }
            Event::Refused(refusal) => outcome = Some(Arrived::Refused(refusal.status)),
            Event::NeedMore => needs_more = true,
        }
        input.drain(..consumed);
        if let Some(outcome) = outcome {
            return outcome;
        }
        if needs_more && !receive(world, index, input).await {
            return Arrived::Closed;
        }
    }
}

/// Waits for more bytes. False at their end.
async fn receive(world: &World, index: usize, input: &mut Vec<u8>) -> bool {
    loop {
        let (is_ended, received) = {
            let mut connection = world.connection(index);
            (connection.is_ended, std::mem::take(&mut connection.to_server))
        };
        input.extend_from_slice(&received);
        if !received.is_empty() || is_ended {
            return !received.is_empty();
        }
        turn().await;
    }
}

/// Sends an output. False where the rest of it cannot be had.
async fn send(world: &Rc<World>, home: usize, index: usize, output: Output) -> bool {
    let mut output = output;
    loop {
        world.connection(index).to_client.extend(output.as_bytes());
        let Some(rest) = output.take_rest() else { return true };
        match read_on(world, home, rest).await {
            Ok(next) => output = next,
            Err(_) => {
                world.connection(index).is_cut_short = true;
                return false;
            }
        }
    }
}

async fn read_on(
    world: &Rc<World>,
    home: usize,
    rest: outboard::engine::Rest,
) -> Result<Output, String> {
    let reading = world.shards[home].engine.borrow_mut().read_on(rest);
    let reading = reading.map_err(|cause| cause.to_string())?;
    wait(world, home, &reading.wait()).await;
    let finished = world.shards[home].engine.borrow_mut().finish_reading(reading);
    finished.map_err(|cause| cause.to_string())
}

async fn wait(world: &Rc<World>, home: usize, wait: &WaitFor) {
    loop {
        turn().await;
        if world.shards[home].engine.borrow_mut().is_over(wait, world.now.get()) {
            return;
        }
    }
}

/// Runs a batch from its text.
pub async fn run_text(
    runner: &Runner,
    text: &[u8],
    blobs: Blobs,
    parcel: &Parcel,
) -> (Status, Output) {
    let world = &runner.world;
    let failed = |text: String| (Status::InternalServerError, Output::Text(text));
    let owner = World::owner(runner.connection);
    let parsed = world.shards[runner.home].engine.borrow_mut().parse(
        text,
        blobs,
        owner,
        &WireLimits::default(),
    );
    let mut batch = match parsed {
        Ok(batch) => batch,
        Err(error) => return failed(format!("bad command text: {error}")),
    };
    let Parcel::Batch(request, ledger) = parcel else {
        world.differs("text that was taken for commands");
        return failed(String::new());
    };
    match run(runner, &mut batch, &request.commands, ledger).await {
        Reply::Ok(output) => (Status::Ok, output),
        Reply::Failed(text) => failed(text),
    }
}

/// Runs a batch to its end, and has the model do the same.
pub async fn run(
    runner: &Runner,
    batch: &mut Batch<'_>,
    commands: &[Command],
    ledger: &RefCell<Ledger>,
) -> Reply {
    let world = &runner.world;
    loop {
        let (done, failed) = batch.outcomes();
        runner.begin(commands, done);
        let now = world.now.get();
        let progress = world.shards[runner.home].engine.borrow_mut().advance(batch, now);
        let progress = match progress {
            // There is one host, and it knows no other.
            Progress::Peer(Errand { index, host, .. }) => {
                batch.came_back(index, Err(Cause::PeerUnknown { host }));
                Progress::Pause
            }
            progress => progress,
        };
        let (done_now, failed_now) = batch.outcomes();
        for index in done..done_now {
            runner.begin(commands, index);
            let known = (done_now == done + 1).then_some(failed_now > failed);
            runner.finish(commands, index, known, ledger);
        }
        let expected = ledger.borrow().failures;
        if failed_now != expected {
            world.differs(&format!("{failed_now} commands failed, not {expected}: {commands:?}"));
        }
        match progress {
            Progress::Done(reply) => return reply,
            Progress::Forward(home) => {
                let command = &commands[done_now];
                let outcome = forward(runner, batch, command, home).await;
                if let Some((outcome, finished)) = outcome {
                    batch.forwarded(outcome);
                    ledger.borrow_mut().record(done_now, command.name(), finished);
                }
            }
            Progress::Pause => turn().await,
            Progress::Join | Progress::Peer(_) => unreachable!("errands come back at once"),
            Progress::Wait(over) => {
                runner.begin(commands, done_now);
                wait(world, runner.home, &over).await;
            }
        }
        if world.has_differed() {
            // Nothing that follows is of interest.
            std::future::pending::<()>().await;
        }
    }
}

impl Runner {
    /// Tells the model that the engine takes up a command, unless it knows.
    fn begin(&self, commands: &[Command], index: usize) {
        let mut in_progress = self.in_progress.borrow_mut();
        let Some(command) = commands.get(index) else { return };
        if in_progress.is_some() {
            return;
        }
        let place = Place {
            home: self.home,
            connection: self.connection,
            is_forwarded: self.is_forwarded,
            drops_output: commands[index + 1..].iter().any(Command::has_output),
        };
        let begun = self.world.model.borrow_mut().begin(place, command, self.world.now.get());
        if let Begun::Here(started) = begun {
            *in_progress = Some(*started);
        }
    }

    fn finish(
        &self,
        commands: &[Command],
        index: usize,
        failed: Option<bool>,
        ledger: &RefCell<Ledger>,
    ) {
        let Some(started) = self.in_progress.borrow_mut().take() else {
            let command = commands[index].text();
            let failed = if failed == Some(true) { "failed" } else { "was done" };
            return self.world.differs(&format!("{command} {failed}, which is another shard's"));
        };
        let now = self.world.now.get();
        match self.world.model.borrow_mut().finish(started, failed, now) {
            Ok(finished) => {
                ledger.borrow_mut().record(index, commands[index].name(), finished);
            }
            Err(difference) => {
                let command = commands[index].text();
                self.world.differs(&format!("{difference}, in command {index}, {command}"));
            }
        }
    }
}

/// Has the session's home run the command that the batch is at.
async fn forward(
    runner: &Runner,
    batch: &Batch<'_>,
    command: &Command,
    Home(home): Home,
) -> Option<(Result<Vec<u8>, String>, Finished)> {
    let world = &runner.world;
    if runner.is_forwarded {
        world.differs("a command was forwarded twice");
        return None;
    }
    if runner.in_progress.borrow().is_some() {
        world.differs(&format!("{} was forwarded, which is at home here", command.text()));
        return None;
    }
    let (text, blob) = batch.forward();
    let blob = blob.map(|(digest, bytes)| (digest, Rc::from(&*bytes)));
    let outcome = Forwarded::default();
    let there =
        Runner { home, is_forwarded: true, in_progress: InProgress::default(), ..runner.clone() };
    let task = run_forwarded(there, text, blob, command.clone(), Rc::clone(&outcome));
    world.spawn(Box::pin(task));
    loop {
        turn().await;
        if let Some(outcome) = outcome.borrow_mut().take() {
            return Some(outcome);
        }
    }
}

async fn run_forwarded(
    runner: Runner,
    text: String,
    blob: Option<(Digest, Rc<[u8]>)>,
    command: Command,
    to: Forwarded,
) {
    let world = &runner.world;
    let mut blobs = Blobs::default();
    if let Some((digest, bytes)) = blob {
        blobs.insert(digest, Blob::Private(bytes));
    }
    let ledger = RefCell::new(Ledger::default());
    let parsed = world.shards[runner.home].engine.borrow_mut().parse(
        text.as_bytes(),
        blobs,
        Owner::Shard,
        &WireLimits::default(),
    );
    let mut batch = match parsed {
        Ok(batch) => batch,
        Err(error) => return world.differs(&format!("forwarded as {text}: {error}")),
    };
    let reply = run(&runner, &mut batch, &[command], &ledger).await;
    let mut outcome = Ok(Vec::new());
    match batch.outcome(reply) {
        Err(cause) => outcome = Err(cause),
        Ok(output) => {
            let mut output = output;
            loop {
                if let Ok(bytes) = &mut outcome {
                    bytes.extend_from_slice(output.as_bytes());
                }
                let Some(rest) = output.take_rest() else { break };
                match read_on(world, runner.home, rest).await {
                    Ok(next) => output = next,
                    Err(cause) => {
                        outcome = Err(cause);
                        break;
                    }
                }
            }
        }
    }
    let finished = ledger.into_inner().into_only(&outcome);
    match finished {
        Ok(finished) => *to.borrow_mut() = Some((outcome, finished)),
        Err(difference) => world.differs(&difference),
    }
}

impl Ledger {
    /// What the only command of a batch came to, which has to agree with its outcome.
    fn into_only(self, outcome: &Result<Vec<u8>, String>) -> Result<Finished, String> {
        let finished = self.into_finished();
        match (&finished.result, outcome) {
            (Ok(()), Ok(bytes)) => match &finished.output {
                Some(output) => output.check(bytes)?,
                None if bytes.is_empty() => {}
                None => return Err("an output of a command that has none".to_owned()),
            },
            // The device was lost while the output was read.
            (Ok(()), Err(cause)) => {
                let causes: Causes = vec![cause.clone()];
                return Ok(Finished { result: Err(causes), output: None });
            }
            (Err(causes), Err(cause)) if causes.iter().any(|known| cause.contains(known)) => {}
            (expected, found) => return Err(format!("forwarded: {found:?}, not {expected:?}")),
        }
        Ok(finished)
    }
}
