//! Every way in which a command can fail, in words for the person at the client.
//!
//! Absent: which command it was; the batch adds index and name.

use std::rc::Rc;
use std::time::Duration;

use crate::compile::CompileError;
use crate::device::DeviceError;
use crate::rdma::RdmaError;
use crate::wire::symbolic::EvalError;

/// Why a command failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Cause {
    #[error("no blob {digest} in this batch: send its bytes before the commands")]
    BlobMissing { digest: String },
    #[error("buffer {buffer} is already allocated")]
    BufferExists { buffer: u64 },
    #[error("unknown buffer {buffer}: it was never allocated, or it was freed")]
    BufferUnknown { buffer: u64 },
    #[error(
        "too many kernels wait to be compiled: one identity has at most {limit} at once; try again"
    )]
    CompilationsOfIdentity { limit: usize },
    #[error("compile error: {0}")]
    Compile(CompileError),
    #[error("{0}")]
    Device(DeviceError),
    #[error(
        "device index {index} is out of range: this server has {count} {name} devices, 0 to {}",
        count - 1
    )]
    DeviceIndex { index: u64, count: u64, name: &'static str },
    #[error("nobody set event {event} within {waited:?}")]
    EventTimeout { event: u64, waited: Duration },
    /// Another shard's cause, in its words.
    #[error("{cause}")]
    Elsewhere { cause: String },
    #[error("external_ptr is refused: memory is given out by the server only")]
    ExternalPointer,
    #[error("graph {graph} is already allocated")]
    GraphExists { graph: u64 },
    #[error("graph input {position} has {bytes} bytes, but the graph copies {copied}")]
    GraphInputBytes { position: usize, bytes: u64, copied: u64 },
    #[error("the graph was recorded with {recorded} inputs, but {given} are given")]
    GraphInputs { given: usize, recorded: usize },
    #[error("the graph has {nodes} kernels, copies or inputs: the limit is {limit}")]
    GraphTooLarge { nodes: usize, limit: usize },
    #[error("unknown graph {graph}: it was never allocated, or it was freed")]
    GraphUnknown { graph: u64 },
    #[error("image buffers are not supported by {name} devices")]
    Image { name: &'static str },
    #[error(
        "too many blobs land here: one connection has at most {limit} that no CopyIn has used; \
         copy some first"
    )]
    Landings { limit: usize },
    #[error("{what} {value} is not a launch size: sizes are 1 to 2147483647")]
    LaunchSize { what: &'static str, value: i64 },
    #[error("{what} has {left} bytes, {other} has {right}: they must be equal")]
    Length { what: String, left: u64, other: String, right: u64 },
    #[error("too many {what}: the limit is {limit} for a session")]
    Limit { what: &'static str, limit: usize },
    #[error("{what} was not made: {cause}")]
    Missing { what: &'static str, cause: Rc<Cause> },
    #[error("{command}: this server has no RDMA, which its properties say with ib_gid=None")]
    NoRdma { command: &'static str },
    #[error("buffer {buffer}: its memory is out of the network card's reach")]
    OutOfReach { buffer: u64 },
    #[error(
        "a BatchTransfer names {sources} sources and {destinations} destinations: each needs its \
         own"
    )]
    Pairs { sources: usize, destinations: usize },
    #[error("the destinations of a BatchTransfer have to be of one host")]
    PairsApart,
    /// Another server, in words that name what went wrong.
    #[error("{command} is not what one server asks of another")]
    OfPeer { command: &'static str },
    #[error(
        "{command} is what one server asks of another: a client sends a blob's bytes before the \
         commands"
    )]
    OfServer { command: &'static str },
    #[error("peer {host}: {why}")]
    Peer { host: String, why: String },
    #[error(
        "this server does not connect to {host:?}: start it with --peer HOST:PORT, spelt as \
         clients spell it"
    )]
    PeerUnknown { host: String },
    #[error("program {name} has no source text: {why}")]
    ProgramText { name: String, why: &'static str },
    #[error("unknown program ({name}, {digest}): it was never allocated, or it was freed")]
    ProgramUnknown { name: String, digest: String },
    #[error("{0}")]
    Rdma(RdmaError),
    #[error(
        "too many connections by RDMA: peers of one identity have at most {limit}; one that \
         connects again under the same name takes the place of its earlier connection"
    )]
    RdmaPeers { limit: usize },
    #[error("the session has ended")]
    SessionEnded,
    #[error("unknown session of device {index}: nothing was done with it yet")]
    SessionUnknown { index: u64 },
    #[error(
        "too many sessions: one identity has at most {limit}, of all its connections; end some \
         with SessionFree, or start the server with a higher --session-limit"
    )]
    SessionsOfIdentity { limit: usize },
    #[error(
        "the two sessions were opened by different connections and live on different cores: \
         open both by one connection"
    )]
    SessionsApart,
    #[error("size 0: a buffer has at least one byte")]
    SizeZero,
    #[error("launch size: {0}")]
    Symbolic(#[from] EvalError),
    #[error("value {value} does not fit the 32-bit integer that kernels take")]
    ValueRange { value: i64 },
    #[error("variable {name} has no value")]
    VariableUnbound { name: String },
    #[error(
        "bytes {offset} to {} lie outside of buffer {base}, which has {base_bytes}",
        u128::from(*offset) + u128::from(*bytes)
    )]
    ViewOutside { base: u64, base_bytes: u64, offset: u64, bytes: u64 },
}

impl From<CompileError> for Cause {
    fn from(error: CompileError) -> Cause {
        Cause::Compile(error)
    }
}
