//! What a batch's reply should be, as its commands come to their ends.

use std::collections::BTreeSet;

use super::model::{ANY, Causes, FRESH, Finished, Mistake, Uid, View};

/// What a command gives back.
#[derive(Clone, Debug)]
pub enum Output {
    Bytes(Box<Bytes>),
    Properties,
    Seconds,
}

/// A copy of a buffer.
#[derive(Clone, Debug)]
pub struct Bytes {
    expected: Vec<u16>,
    view: View,
    depends: BTreeSet<Uid>,
    /// What other connections have written so far.
    foreign_writes: u32,
    connection: usize,
}

impl Bytes {
    fn foreign_writes(view: &View, connection: usize) -> u32 {
        let region = view.region.borrow();
        region.writes.iter().filter(|(by, _)| **by != connection).map(|(_, count)| count).sum()
    }

    fn matches(&self, found: &[u8]) -> bool {
        if found.len() != self.expected.len() {
            return false;
        }
        // Others may have written since, and their bytes may be read or not.
        if Bytes::foreign_writes(&self.view, self.connection) != self.foreign_writes {
            return true;
        }
        let region = self.view.region.borrow();
        let alphabet = region.alphabet.borrow();
        let fits = |expected: u16, found: u16| match expected {
            ANY => true,
            FRESH => found == 0 || alphabet.contains(ANY) || alphabet.contains(found),
            byte => byte == found,
        };
        self.expected.iter().zip(found).all(|(byte, found)| fits(*byte, u16::from(*found)))
    }
}

impl Output {
    pub fn of_view(view: View, depends: BTreeSet<Uid>, connection: usize) -> Output {
        let (expected, foreign_writes) = (view.read(), Bytes::foreign_writes(&view, connection));
        Output::Bytes(Box::new(Bytes { expected, view, depends, foreign_writes, connection }))
    }

    /// The command is done. What depended on sessions that were lost before is not known.
    pub fn settle(&mut self, gone: &BTreeSet<Uid>) {
        if let Output::Bytes(bytes) = self
            && !bytes.depends.is_disjoint(gone)
        {
            bytes.expected.fill(ANY);
        }
    }

    /// The output is not sent.
    pub fn forget(&mut self) {
        if let Output::Bytes(bytes) = self {
            bytes.expected.fill(ANY);
        }
    }

    pub fn check(&self, found: &[u8]) -> Result<(), String> {
        let shown =
            |found: &[u8]| String::from_utf8_lossy(&found[..found.len().min(80)]).into_owned();
        match self {
            Output::Bytes(bytes) if bytes.matches(found) => Ok(()),
            Output::Bytes(bytes) => {
                let end = bytes.expected.len().min(16);
                let head = &bytes.expected[..end];
                Err(format!("bytes {:?}, expected {head:?}", &found[..found.len().min(16)]))
            }
            Output::Properties if found.starts_with(b"RemoteProperties(real_device='NULL'") => {
                Ok(())
            }
            Output::Seconds => match std::str::from_utf8(found).ok().and_then(|t| t.parse().ok()) {
                Some(seconds) if f64::is_finite(seconds) && seconds >= 0.0 => Ok(()),
                _ => Err(format!("no number of seconds: {}", shown(found))),
            },
            Output::Properties => Err(format!("no properties: {}", shown(found))),
        }
    }
}

/// The account of one batch.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Index, name and possible causes of the first failure.
    first: Option<(usize, &'static str, Causes)>,
    pub failures: usize,
    output: Option<Output>,
    mistake: Option<Mistake>,
}

impl Ledger {
    pub fn new(mistake: Option<Mistake>) -> Ledger {
        Ledger { mistake, ..Ledger::default() }
    }

    pub fn record(&mut self, index: usize, name: &'static str, finished: Finished) {
        match finished.result {
            Ok(()) => {
                let keeps = self.mistake == Some(Mistake::OutputOfEarlier) && self.output.is_some();
                if finished.output.is_some() && !keeps {
                    self.output = finished.output;
                }
            }
            Err(causes) => {
                self.failures += 1;
                self.first.get_or_insert((index, name, causes));
            }
        }
    }

    /// Compares a reply with what it should be.
    pub fn check(&self, is_ok: bool, body: &[u8]) -> Result<(), String> {
        match (&self.first, is_ok) {
            (None, true) => match &self.output {
                Some(output) => output.check(body),
                None if body.is_empty() => Ok(()),
                None => Err(format!("{} bytes where no command has an output", body.len())),
            },
            (None, false) => Err(format!("failed: {}", String::from_utf8_lossy(body))),
            (Some(first), true) => Err(format!("worked, but {first:?}")),
            (Some(_), false) => self.check_failure(&String::from_utf8_lossy(body)),
        }
    }

    fn check_failure(&self, text: &str) -> Result<(), String> {
        let Some((index, name, causes)) = &self.first else { return Ok(()) };
        let more = self.failures - usize::from(self.mistake != Some(Mistake::FailureCount));
        let end = match more {
            0 => "'), trace='')".to_owned(),
            1 => " (and 1 later command failed)'), trace='')".to_owned(),
            more => format!(" (and {more} later commands failed)'), trace='')"),
        };
        let begin = format!("RemoteException(exc=RuntimeError('command {index} ({name}): ");
        let quoted =
            [begin.replace("RuntimeError('", "RuntimeError(\""), end.replacen('\'', "\"", 1)];
        let fits = |begin: &str, end: &str| text.starts_with(begin) && text.ends_with(end);
        let is_framed = fits(&begin, &end) || fits(&quoted[0], &quoted[1]);
        let has_more = text.contains(" later command");
        let has_cause = causes.iter().any(|cause| text.contains(cause.as_str()));
        if is_framed && has_cause && has_more == (more > 0) {
            return Ok(());
        }
        Err(format!("{text}; expected {begin}..{causes:?}..{end}"))
    }
}

impl Ledger {
    /// What the batch's only command came to.
    pub fn into_finished(self) -> Finished {
        let Ledger { first, output, .. } = self;
        let result = first.map_or(Ok(()), |(_, _, causes)| Err(causes));
        Finished { result, output }
    }
}
