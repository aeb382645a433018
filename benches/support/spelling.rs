//! Commands as the stock client spells them: every field by its name, the session first.

use std::fmt::Write as _;

/// The name of a program's source.
pub(crate) const SOURCE: &str = "11f707e34c4777589d0ac165c9a7cc36492d43c937d5f74591b4719030faacfe";
/// The name of a data blob.
pub(crate) const DATA: &str = "6b1e73a0094b7b812d3b9e22cffb4f8239319847522c4fa103753b6950020f93";

/// A session, from which commands are made.
#[derive(Clone)]
pub(crate) struct Session {
    key: String,
}

impl Session {
    /// The session of device `index`; the nonce tells sessions of one device apart.
    pub(crate) fn new(index: u32, nonce: u128) -> Session {
        let key = format!("SessionKey(host='127.0.0.1:6667', idx={index}, nonce='{nonce:032x}')");
        Session { key }
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// A command with these fields behind its session.
    fn command(&self, name: &str, fields: &str) -> String {
        format!("{name}(session={}{fields})", self.key)
    }

    pub(crate) fn properties(&self) -> String {
        self.command("GetProperties", "")
    }

    pub(crate) fn session_free(&self) -> String {
        self.command("SessionFree", "")
    }

    pub(crate) fn alloc(&self, buffer: u64, bytes: usize) -> String {
        let fields = format!(
            ", buffer_num={buffer}, size={bytes}, options=BufferSpec(image=None, uncached=False, \
             cpu_access=False, host=False, nolru=False, external_ptr=None)"
        );
        self.command("BufferAlloc", &fields)
    }

    pub(crate) fn offset(&self, view: u64, bytes: usize, offset: usize, base: u64) -> String {
        let fields =
            format!(", buffer_num={view}, size={bytes}, offset={offset}, sbuffer_num={base}");
        self.command("BufferOffset", &fields)
    }

    pub(crate) fn free(&self, buffer: u64) -> String {
        self.command("BufferFree", &format!(", buffer_num={buffer}"))
    }

    pub(crate) fn copy_in(&self, buffer: u64) -> String {
        self.command("CopyIn", &format!(", buffer_num={buffer}, datahash='{DATA}'"))
    }

    pub(crate) fn copy_out(&self, buffer: u64) -> String {
        self.command("CopyOut", &format!(", buffer_num={buffer}"))
    }

    pub(crate) fn program(&self) -> String {
        self.command("ProgramAlloc", &format!(", name='E_16_4', datahash='{SOURCE}'"))
    }

    pub(crate) fn program_free(&self) -> String {
        self.command("ProgramFree", &format!(", name='E_16_4', datahash='{SOURCE}'"))
    }

    /// A launch on buffers 1 and 0.
    pub(crate) fn exec(&self, wait: bool) -> String {
        let fields = format!(
            ", name='E_16_4', datahash='{SOURCE}', bufs=(1, 0), vals=(), global_size=None, \
             local_size=None, wait={}",
            python_bool(wait)
        );
        self.command("ProgramExec", &fields)
    }

    pub(crate) fn transfer(&self, buffer: u64, to: &Session, to_buffer: u64) -> String {
        let fields = format!(", buffer_num={buffer}, dsession={}, dbuffer_num={to_buffer}", to.key);
        self.command("Transfer", &fields)
    }

    pub(crate) fn event(&self, of: &Session, event: u64) -> String {
        self.command("Event", &format!(", event_session={}, event={event}", of.key))
    }

    pub(crate) fn wait(&self, event: u64) -> String {
        self.command("Wait", &format!(", event={event}"))
    }

    /// A graph of `kernels` kernels on buffers 1 and 0, of which 0 is its input.
    pub(crate) fn graph(&self, graph: u64, kernels: usize) -> String {
        let mut items = String::new();
        for _ in 0..kernels {
            write!(
                items,
                "GraphComputeItem(session={}, name='E_16_4', datahash='{SOURCE}', bufs=(1, 0), \
                 vars=(), fixedvars={{}}, ins=(1,), outs=(0,), global_size=(1, 1, 1), \
                 local_size=(1, 1, 1)), ",
                self.key
            )
            .expect("a string takes what is written to it");
        }
        let items = items.trim_end_matches(' ');
        let items = if kernels > 1 { items.trim_end_matches(',') } else { items };
        let fields = format!(
            ", graph_num={graph}, jit_cache=({items}), bufs=(({}, 0),), var_vals={{}}",
            self.key
        );
        self.command("GraphAlloc", &fields)
    }

    pub(crate) fn graph_exec(&self, graph: u64, wait: bool) -> String {
        let fields = format!(
            ", graph_num={graph}, bufs=(({}, 0),), var_vals={{}}, wait={}",
            self.key,
            python_bool(wait)
        );
        self.command("GraphExec", &fields)
    }

    pub(crate) fn graph_free(&self, graph: u64) -> String {
        self.command("GraphFree", &format!(", graph_num={graph}"))
    }
}

/// The text of a batch.
pub(crate) fn batch(commands: &[String]) -> String {
    format!("[{}]", commands.join(", "))
}

fn python_bool(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}
