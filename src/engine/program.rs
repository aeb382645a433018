//! Programs: compiling, loading, running.

use std::rc::Rc;
use std::sync::Arc;

use hashbrown::Equivalent;
use smallvec::SmallVec;

use super::batch::{Batch, Output, Pending};
use super::session::{Home, Names, SessionId, Thing};
use super::tenant::Turn;
use super::{Cause, DONE, Engine, Step, Stop, WaitFor};
use crate::blob::Digest;
use crate::compile;
use crate::device::{Fence, Launch, LaunchSize, Program, Span};
use crate::wire::command::{self, Command};
use crate::wire::{Stored, reply};

/// The name of a program: the client's name for it, and its source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ProgramKey {
    pub(super) name: Box<str>,
    pub(super) source: Digest,
}

/// A loaded program. The client may allocate the same one several times and frees it as often.
#[derive(Debug)]
pub(super) struct ProgramEntry {
    pub(super) program: Rc<Program>,
    references: u64,
}

/// A source on its way to a binary, and what it counts as.
#[derive(Clone, Debug)]
pub(super) struct Compilation {
    ticket: compile::Ticket,
    _turn: Rc<Turn>,
}

impl Engine {
    /// Starts the compilations that a batch will need, so that they run side by side; how many are
    /// under way at once is bounded.
    pub(super) fn prefetch(&mut self, batch: &mut Batch<'_>) {
        while let Some(&index) = batch.commands.program_allocs().get(batch.compiling_next) {
            if let Some((_, session)) = batch.commands.session(index)
                && let Some(Stored::Other(Command::ProgramAlloc(c))) = batch.commands.get(index)
                && index >= batch.next
                && !batch.compiling.contains_key(&(session.idx, c.source))
                && session.idx < self.platform.device_count()
                && let Ok(blob) = batch.blobs.find(&c.source)
                && blob.bytes() <= self.limits.source_bytes_max
            {
                if batch.compiling.len() >= self.limits.compilations_ahead_max {
                    return;
                }
                let limit = self.limits.compilations_per_identity_max / 2;
                let Some(turn) = self.tenant(batch.identity).compilation(limit) else { return };
                let source = Arc::from(&*blob.to_private());
                let asker = self.asker(batch);
                let ticket = self.platform.compile(asker, session.idx, source);
                let compilation = Compilation { ticket, _turn: Rc::new(turn) };
                batch.compiling.insert((session.idx, c.source), compilation);
            }
            batch.compiling_next += 1;
        }
    }

    /// For whom a batch's programs are compiled. What comes from another shard is one connection.
    fn asker(&self, batch: &Batch<'_>) -> compile::Asker {
        let connection = batch.owner.number();
        let (client, Home(shard)) = (batch.identity.number(), self.sessions.home());
        compile::Asker { client, shard, connection }
    }

    pub(super) fn program_alloc(
        &mut self,
        at: SessionId,
        c: &command::ProgramAlloc<'_>,
        batch: &Batch<'_>,
    ) -> Result<Step, Stop> {
        let key = ProgramKey { name: (*c.name).into(), source: c.source };
        let blob = batch.blobs.find(&c.source)?;
        let limit = self.limits.programs_per_session_max;
        let text_bytes_max = self.limits.source_bytes_max;
        let session = self.device(at)?;
        if let Some(entry) = session.programs.get_mut(&key) {
            entry.references += 1;
            return DONE;
        }
        if session.programs.len() >= limit {
            return Err(Cause::Limit { what: "programs", limit }.into());
        }
        if blob.bytes() > text_bytes_max {
            let why = "it is longer than this server compiles";
            return Err(Cause::ProgramText { name: c.name.to_string(), why }.into());
        }
        let index = session.index;
        let compilation = match batch.compiling.get(&(index, c.source)) {
            Some(compilation) => compilation.clone(),
            None => {
                let limit = self.limits.compilations_per_identity_max;
                let turn = self.tenant(batch.identity).compilation(limit);
                let turn = turn.ok_or(Cause::CompilationsOfIdentity { limit })?;
                let (asker, source) = (self.asker(batch), Arc::from(&*blob.to_private()));
                let ticket = self.platform.compile(asker, index, source);
                Compilation { ticket, _turn: Rc::new(turn) }
            }
        };
        Ok(Step::Wait(
            WaitFor::Compile(compilation.ticket.clone()),
            Pending::Compile { session: at, key, compilation },
        ))
    }

    pub(super) fn program_compiled(
        &mut self,
        at: SessionId,
        key: ProgramKey,
        compilation: Compilation,
    ) -> Result<Step, Stop> {
        let Some(compiled) = compilation.ticket.poll() else {
            let wait = WaitFor::Compile(compilation.ticket.clone());
            return Ok(Step::Wait(wait, Pending::Compile { session: at, key, compilation }));
        };
        let binary = compiled?;
        let session = match self.device(at) {
            Ok(session) => session,
            Err(Stop::Retry(room)) => {
                return Ok(Step::Wait(room, Pending::Compile { session: at, key, compilation }));
            }
            Err(stop) => return Err(stop),
        };
        let device = session.open_device()?;
        let program = device.load(&key.name, &binary)?;
        let fence = device.last();
        Ok(Step::Wait(
            WaitFor::Device { session: at, fence },
            Pending::Load { session: at, key, program, fence },
        ))
    }

    pub(super) fn program_loaded(
        &mut self,
        at: SessionId,
        key: ProgramKey,
        program: Program,
        fence: Fence,
    ) -> Result<Step, Stop> {
        self.finished(at, fence)?;
        let session = self.get_mut(at)?;
        session.open_device()?.loaded(&program)?;
        session.forget_missing(&Thing::Program(key.clone()));
        // Another connection may have loaded it meanwhile.
        let entry = session.programs.entry(key);
        let loaded = || ProgramEntry { program: Rc::new(program), references: 0 };
        entry.or_insert_with(loaded).references += 1;
        DONE
    }

    pub(super) fn program_free(
        &mut self,
        at: SessionId,
        c: &command::ProgramFree<'_>,
    ) -> Result<Step, Stop> {
        let key = ProgramKey { name: (*c.name).into(), source: c.source };
        let session = self.get_mut(at)?;
        if let Some(entry) = session.programs.get_mut(&key) {
            entry.references -= 1;
            if entry.references == 0 {
                session.programs.remove(&key);
            }
        } else if !session.forget_missing(&Thing::Program(key)) {
            return Err(unknown(&c.name, c.source).into());
        }
        DONE
    }

    pub(super) fn program_exec(
        &mut self,
        at: SessionId,
        c: &command::Exec<'_>,
    ) -> Result<Step, Stop> {
        let values = kernel_values(c.values)?;
        let global = c.global.map(|sizes| launch_size("global size", sizes)).transpose()?;
        let local = c.local.map(|sizes| launch_size("local size", sizes)).transpose()?;
        let (names, device) = self.device(at)?.split()?;
        let program = names.program(c.name, *c.source)?;
        let mut buffers: SmallVec<[Span<'_>; 8]> = SmallVec::new();
        for number in c.buffers {
            buffers.push(names.buffer(*number)?.span());
        }
        let (buffers, values, timed) = (&buffers[..], &values[..], c.wait);
        let launch = Launch { program, buffers, values, global, local, timed };
        let fence = device.launch(&launch)?;
        if !c.wait {
            return DONE;
        }
        Ok(Step::Wait(
            WaitFor::Device { session: at, fence },
            Pending::Elapsed { session: at, fence },
        ))
    }

    /// The time that a launch took, as the client reads it: in seconds.
    pub(super) fn launch_elapsed(&mut self, at: SessionId, fence: Fence) -> Result<Step, Stop> {
        let elapsed = self.elapsed(at, fence)?;
        Ok(Step::Done(Output::Text(reply::Seconds(elapsed.as_secs_f64()).to_string())))
    }
}

/// A [`ProgramKey`] to look for.
#[derive(Hash)]
struct ProgramName<'n> {
    name: &'n str,
    source: Digest,
}

impl Equivalent<ProgramKey> for ProgramName<'_> {
    fn equivalent(&self, key: &ProgramKey) -> bool {
        self.source == key.source && self.name == &*key.name
    }
}

impl<'s> Names<'s> {
    pub(super) fn program(self, name: &str, source: Digest) -> Result<&'s Rc<Program>, Cause> {
        match self.programs.get(&ProgramName { name, source }) {
            Some(entry) => Ok(&entry.program),
            None => {
                let key = ProgramKey { name: name.into(), source };
                let what = "the program";
                Err(self.missing_or(&Thing::Program(key), what, || unknown(name, source)))
            }
        }
    }
}

fn unknown(name: &str, source: Digest) -> Cause {
    Cause::ProgramUnknown { name: name.to_owned(), digest: source.to_string() }
}

fn kernel_values(values: &[i64]) -> Result<SmallVec<[i32; 8]>, Cause> {
    values.iter().map(|value| kernel_value(*value)).collect()
}

/// An integer as kernels take it.
pub(super) fn kernel_value(value: i64) -> Result<i32, Cause> {
    i32::try_from(value).map_err(|_| Cause::ValueRange { value })
}

fn launch_size(what: &'static str, sizes: &[i64]) -> Result<LaunchSize, Cause> {
    let mut launch = [1; 3];
    for (to, value) in launch.iter_mut().zip(sizes) {
        *to = dimension(what, *value)?;
    }
    Ok(launch)
}

/// One dimension of a launch size.
pub(super) fn dimension(what: &'static str, value: i64) -> Result<i32, Cause> {
    match i32::try_from(value) {
        Ok(size) if size > 0 => Ok(size),
        _ => Err(Cause::LaunchSize { what, value }),
    }
}
