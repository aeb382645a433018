//! A parser with memory that it uses again and again, as a shard's has.

use outboard::config::{EngineLimits, WireLimits};
use outboard::wire::{Commands, Tape};

#[derive(Default)]
pub(crate) struct Parser {
    limits: WireLimits,
    memory: Commands<'static>,
    tape: Tape,
}

impl Parser {
    /// Parses a text that the client could have sent; how many commands it has.
    pub(crate) fn parse(&mut self, text: &str) -> usize {
        let memory = std::mem::take(&mut self.memory);
        let commands = Commands::parse(memory, &mut self.tape, text.as_bytes(), &self.limits)
            .expect("the client could have sent it");
        let count = commands.len();
        self.memory = commands.recycle(EngineLimits::BATCH_BYTES_KEPT_MAX);
        count
    }
}
