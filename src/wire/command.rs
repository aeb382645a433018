//! The commands: what a batch asks for.
//!
//! Owns: [`Request`], [`Command`] and the records they are made of. Field names are the engine's;
//! the strings beside them are the wire's. Reading checks types and 64-bit ranges, and nothing that
//! needs a session's state.
//!
//! Reading order: [`Command`], then the records in the order of its variants.

use std::borrow::Cow;
use std::fmt;

use smallvec::SmallVec;

use super::cursor::Cursor;
use super::error::{WireError, WireErrorKind};
use super::record::{Fields, Part, record, record_part, write_tuple};
use super::repr;
use super::symbolic::{EvalError, Integer, Variable};
use super::value::Value;
use crate::blob::Digest;

/// One command, the session it is for, and where it stands in the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Request<'t> {
    pub session: SessionKey<'t>,
    pub command: Command<'t>,
    /// Byte offset in the command text.
    pub offset: usize,
}

/// A command, named as on the wire.
#[derive(Clone, Debug, PartialEq)]
pub enum Command<'t> {
    /// Copies many buffers to another host.
    BatchTransfer(BatchTransfer<'t>),
    /// Makes memory for blobs that are written by RDMA. What one of these servers asks of another;
    /// the reference knows no such command.
    BlobLanding(BlobLanding),
    BufferAlloc(BufferAlloc),
    BufferFree(BufferFree),
    /// Registers buffers for RDMA.
    BufferIovas(BufferIovas<'t>),
    /// Makes a view.
    BufferOffset(BufferOffset),
    CopyIn(CopyIn),
    CopyOut(CopyOut),
    /// Sets an event.
    Event(Event<'t>),
    GetProperties,
    GraphAlloc(GraphAlloc<'t>),
    GraphExec(GraphExec<'t>),
    GraphFree(GraphFree),
    /// Accepts an RDMA connection.
    IbConnect(IbConnect<'t>),
    ProgramAlloc(ProgramAlloc<'t>),
    ProgramExec(Box<ProgramExec<'t>>),
    ProgramFree(ProgramFree<'t>),
    SessionFree,
    /// Copies a buffer to another session's.
    Transfer(Transfer<'t>),
    /// Waits for an event.
    Wait(Wait),
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u64);

        impl<'t> Part<'t> for $name {
            #[inline]
            fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
                u64::read(value).map($name)
            }

            #[inline]
            fn read_plain(cursor: &mut Cursor<'t>) -> Option<Self> {
                u64::read_plain(cursor).map($name)
            }

            fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A client's name for a buffer, unique in its session.
    BufferNumber
}
number! {
    /// A client's name for an event, unique in its session.
    EventNumber
}
number! {
    /// A client's name for a graph, unique in its session.
    GraphNumber
}

record! {
    /// The name of a session, and the capability to use it.
    #[derive(Eq, Hash)]
    "SessionKey" SessionKey<'t> {
        /// How the client reaches the server.
        "host" host: Cow<'t, str>,
        /// Which device of the server.
        "idx" idx: u64,
        /// The client's secret.
        "nonce" nonce: Cow<'t, str>,
    }
}
record_part!(SessionKey<'t>);

impl SessionKey<'_> {
    #[must_use]
    pub fn into_owned(self) -> SessionKey<'static> {
        SessionKey {
            host: Cow::Owned(self.host.into_owned()),
            idx: self.idx,
            nonce: Cow::Owned(self.nonce.into_owned()),
        }
    }
}

/// A buffer of some session: `(SessionKey(...), 3)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BufferName<'t> {
    pub session: SessionKey<'t>,
    pub buffer: BufferNumber,
}

impl BufferName<'_> {
    #[must_use]
    pub fn into_owned(self) -> BufferName<'static> {
        BufferName { session: self.session.into_owned(), buffer: self.buffer }
    }
}

impl<'t> Part<'t> for BufferName<'t> {
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        let expected = "a pair of SessionKey and buffer number";
        let mut items = value.sequence(expected)?;
        let (Some(session), Some(buffer), None) = (items.next(), items.next(), items.next()) else {
            return Err(value.mismatch(expected));
        };
        Ok(BufferName { session: Part::read(session)?, buffer: Part::read(buffer)? })
    }

    fn read_plain(cursor: &mut Cursor<'t>) -> Option<Self> {
        cursor.eat_text("(")?;
        let session = Part::read_plain(cursor)?;
        cursor.eat_text(", ")?;
        let buffer = Part::read_plain(cursor)?;
        cursor.eat_text(")")?;
        Some(BufferName { session, buffer })
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.session, self.buffer)
    }
}

record! {
    "BatchTransfer" + session BatchTransfer<'t> {
        "sbuffer_nums" sources: Vec<BufferName<'t>>,
        "dbuffer_nums" destinations: Vec<BufferName<'t>>,
    }
}

record! {
    "BlobLanding" + session BlobLanding {
        "blobs" blobs: Vec<BlobLength>,
    }
}

/// A blob that is to come, and its length: `('00...', 3)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobLength {
    pub name: Digest,
    pub bytes: u64,
}

impl<'t> Part<'t> for BlobLength {
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        let expected = "a pair of digest and length";
        let mut items = value.sequence(expected)?;
        let (Some(name), Some(bytes), None) = (items.next(), items.next(), items.next()) else {
            return Err(value.mismatch(expected));
        };
        Ok(BlobLength { name: Part::read(name)?, bytes: Part::read(bytes)? })
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "('{}', {})", self.name, self.bytes)
    }
}

record! {
    "BufferAlloc" + session BufferAlloc {
        "buffer_num" buffer: BufferNumber,
        /// In bytes.
        "size" size: u64,
        "options" options: BufferSpec,
    }
}

record! {
    /// Wishes about an allocation.
    #[derive(Default)]
    "BufferSpec" BufferSpec {
        "image" image: Option<Image> = None,
        "uncached" uncached: bool = false,
        "cpu_access" cpu_access: bool = false,
        "host" host: bool = false,
        "nolru" nolru: bool = false,
        /// An address in the server's memory, which no client may name.
        "external_ptr" external_ptr: Option<i128> = None,
    }
}
record_part!(BufferSpec);

/// A texture's shape: `dtypes.imagef((height, width, 4))`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    pub texel: Texel,
    /// Height, width, channels.
    pub shape: [u64; 3],
}

/// What an image is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Texel {
    /// 32 bits a channel, `imagef`.
    Float,
    /// 16 bits a channel, `imageh`.
    Half,
}

impl<'t> Part<'t> for Image {
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        let expected = "None, dtypes.imagef((h, w, 4)) or dtypes.imageh((h, w, 4))";
        let wrong = || value.mismatch(expected);
        let (name, mut arguments) = value.as_call().ok_or_else(wrong)?;
        let texel = match name {
            "dtypes.imagef" => Texel::Float,
            "dtypes.imageh" => Texel::Half,
            _ => {
                let found = value.quote();
                return Err(value.error(WireErrorKind::UnknownDataType { found }));
            }
        };
        let (Some(shape), None) = (arguments.next(), arguments.next()) else {
            return Err(wrong());
        };
        let shape: SmallVec<[u64; 3]> = Part::read(shape)?;
        Ok(Image { texel, shape: shape.into_inner().map_err(|_| wrong())? })
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.texel {
            Texel::Float => "imagef",
            Texel::Half => "imageh",
        };
        let [height, width, channels] = self.shape;
        write!(f, "dtypes.{name}(({height}, {width}, {channels}))")
    }
}

record! {
    "BufferFree" + session BufferFree {
        "buffer_num" buffer: BufferNumber,
    }
}

record! {
    "BufferIOVAS" + session BufferIovas<'t> {
        "buffer_nums" buffers: Vec<BufferName<'t>>,
    }
}

record! {
    "BufferOffset" + session BufferOffset {
        /// The view.
        "buffer_num" buffer: BufferNumber,
        /// In bytes.
        "size" size: u64,
        /// In bytes from the base's start.
        "offset" offset: u64,
        "sbuffer_num" base: BufferNumber,
    }
}

record! {
    "CopyIn" + session CopyIn {
        "buffer_num" buffer: BufferNumber,
        /// The blob that holds the bytes.
        "datahash" source: Digest,
    }
}

record! {
    "CopyOut" + session CopyOut {
        "buffer_num" buffer: BufferNumber,
    }
}

record! {
    "Event" + session Event<'t> {
        /// Whose event it is.
        "event_session" event_session: SessionKey<'t>,
        "event" event: EventNumber,
    }
}

record! {
    "GraphAlloc" + session GraphAlloc<'t> {
        "graph_num" graph: GraphNumber,
        "jit_cache" items: Box<[GraphItem<'t>]>,
        /// The inputs, which a run may replace.
        "bufs" inputs: Box<[BufferName<'t>]>,
        "var_vals" values: VariableValues<'t>,
    }
}

/// A step of a graph.
#[derive(Clone, Debug, PartialEq)]
pub enum GraphItem<'t> {
    Compute(Box<GraphComputeItem<'t>>),
    Transfer { session: SessionKey<'t>, transfer: Transfer<'t> },
}

record! {
    /// A kernel of a graph.
    "GraphComputeItem" GraphComputeItem<'t> {
        "session" session: SessionKey<'t>,
        "name" name: Cow<'t, str>,
        "datahash" source: Digest,
        "bufs" buffers: SmallVec<[BufferNumber; 8]>,
        /// Passed to the kernel after the buffers.
        "vars" variables: Box<[Variable<'t>]>,
        /// Win over the values that a run gives.
        "fixedvars" fixed: VariableValues<'t>,
        /// Positions in `buffers` that are read.
        "ins" inputs: SmallVec<[u64; 8]>,
        /// Positions in `buffers` that are written.
        "outs" outputs: SmallVec<[u64; 2]>,
        "global_size" global: Option<LaunchSize<Integer<'t>>>,
        "local_size" local: Option<LaunchSize<Integer<'t>>>,
    }
}
record_part!(GraphComputeItem<'t>);

impl<'t> Part<'t> for GraphItem<'t> {
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        match value.as_call() {
            Some((name, arguments)) if name == Transfer::SHAPE.name => {
                let fields = Fields::new(Transfer::SHAPE, value, arguments)?;
                let session = fields.read_session()?;
                Ok(GraphItem::Transfer { session, transfer: Transfer::from_fields(&fields)? })
            }
            Some((name, _)) if name == GraphComputeItem::SHAPE.name => {
                GraphComputeItem::read(value).map(Box::new).map(GraphItem::Compute)
            }
            _ => Err(value.mismatch("a GraphComputeItem or a Transfer")),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GraphItem::Compute(item) => item.write(f),
            GraphItem::Transfer { session, transfer } => {
                write!(f, "{}(session={session}", Transfer::SHAPE.name)?;
                transfer.write_fields(", ", f)?;
                f.write_str(")")
            }
        }
    }
}

record! {
    "GraphExec" + session GraphExec<'t> {
        "graph_num" graph: GraphNumber,
        /// Replace the graph's inputs, position by position.
        "bufs" inputs: Box<[BufferName<'t>]>,
        "var_vals" values: VariableValues<'t>,
        /// Whether to answer with the seconds it took.
        "wait" wait: bool,
    }
}

/// Values of variables, in the order of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VariableValues<'t>(pub Vec<(VariableKey<'t>, i64)>);

/// How a value's variable is named: in full, or, by later clients, by its name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VariableKey<'t> {
    Name(Cow<'t, str>),
    Variable(Variable<'t>),
}

impl VariableKey<'_> {
    /// The variable's name. Two variables are the same if it is.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            VariableKey::Name(name) => name,
            VariableKey::Variable(variable) => &variable.name,
        }
    }

    #[must_use]
    pub fn into_owned(self) -> VariableKey<'static> {
        match self {
            VariableKey::Name(name) => VariableKey::Name(Cow::Owned(name.into_owned())),
            VariableKey::Variable(variable) => VariableKey::Variable(variable.into_owned()),
        }
    }
}

impl VariableValues<'_> {
    /// The value of the variable `name`: the last one, as in a Python dict.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<i64> {
        self.0.iter().rev().find(|(key, _)| key.name() == name).map(|(_, value)| *value)
    }

    #[must_use]
    pub fn into_owned(self) -> VariableValues<'static> {
        VariableValues(self.0.into_iter().map(|(key, value)| (key.into_owned(), value)).collect())
    }
}

impl<'t> Part<'t> for VariableValues<'t> {
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        let mut items = value.dict("a dict from variables to ints")?;
        let mut values = Vec::new();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            let key = match key.is_str() {
                true => VariableKey::Name(Part::read(key)?),
                false => VariableKey::Variable(Part::read(key)?),
            };
            values.push((key, Part::read(value)?));
        }
        Ok(VariableValues(values))
    }

    /// Without variables, as most graphs run.
    fn read_plain(cursor: &mut Cursor<'t>) -> Option<Self> {
        cursor.eat_text("{}")?;
        Some(VariableValues::default())
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, (key, value)) in self.0.iter().enumerate() {
            f.write_str(if index > 0 { ", " } else { "" })?;
            match key {
                VariableKey::Name(name) => write!(f, "{}", repr::Str(name))?,
                VariableKey::Variable(variable) => write!(f, "{variable}")?,
            }
            write!(f, ": {value}")?;
        }
        f.write_str("}")
    }
}

record! {
    "GraphFree" + session GraphFree {
        "graph_num" graph: GraphNumber,
    }
}

record! {
    "IBConnect" + session IbConnect<'t> {
        /// How the other server is named.
        "host" host: Cow<'t, str>,
        /// The other side's address.
        "gid" gid: [u8; 16],
        /// The other side's queue pair.
        "qp_num" queue_pair: u64,
    }
}

record! {
    "ProgramAlloc" + session ProgramAlloc<'t> {
        "name" name: Cow<'t, str>,
        /// The blob that holds the source text.
        "datahash" source: Digest,
    }
}

record! {
    "ProgramExec" + session ProgramExec<'t> {
        "name" name: Cow<'t, str>,
        "datahash" source: Digest,
        "bufs" buffers: SmallVec<[BufferNumber; 8]>,
        /// Passed to the kernel after the buffers.
        "vals" values: SmallVec<[i64; 4]>,
        "global_size" global: Option<LaunchSize<i64>>,
        "local_size" local: Option<LaunchSize<i64>>,
        /// Whether to answer with the seconds it took.
        "wait" wait: bool,
    }
}

/// The fields of a [`ProgramExec`], wherever they are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exec<'c> {
    pub name: &'c str,
    pub source: &'c Digest,
    pub buffers: &'c [BufferNumber],
    pub values: &'c [i64],
    /// One to three sizes.
    pub global: Option<&'c [i64]>,
    pub local: Option<&'c [i64]>,
    pub wait: bool,
}

impl Exec<'_> {
    /// A record with these fields, but for the name.
    pub(crate) fn to_record<'t>(self, name: Cow<'t, str>) -> ProgramExec<'t> {
        ProgramExec {
            name,
            source: *self.source,
            buffers: self.buffers.into(),
            values: self.values.into(),
            global: self.global.and_then(LaunchSize::of),
            local: self.local.and_then(LaunchSize::of),
            wait: self.wait,
        }
    }
}

impl ProgramExec<'_> {
    #[must_use]
    pub fn fields(&self) -> Exec<'_> {
        Exec {
            name: &self.name,
            source: &self.source,
            buffers: &self.buffers,
            values: &self.values,
            global: self.global.as_ref().map(LaunchSize::as_slice),
            local: self.local.as_ref().map(LaunchSize::as_slice),
            wait: self.wait,
        }
    }
}

/// Work groups, or work items of one, by dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LaunchSize<T> {
    One([T; 1]),
    Two([T; 2]),
    Three([T; 3]),
}

impl<T> LaunchSize<T> {
    /// The sizes that were given, one to three.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        match self {
            LaunchSize::One(sizes) => sizes,
            LaunchSize::Two(sizes) => sizes,
            LaunchSize::Three(sizes) => sizes,
        }
    }
}

impl LaunchSize<i64> {
    /// The sizes, if there are one to three.
    fn of(sizes: &[i64]) -> Option<Self> {
        match *sizes {
            [x] => Some(LaunchSize::One([x])),
            [x, y] => Some(LaunchSize::Two([x, y])),
            [x, y, z] => Some(LaunchSize::Three([x, y, z])),
            _ => None,
        }
    }

    /// All three sizes; those that were not given are 1.
    #[must_use]
    pub fn padded(self) -> [i64; 3] {
        match self {
            LaunchSize::One([x]) => [x, 1, 1],
            LaunchSize::Two([x, y]) => [x, y, 1],
            LaunchSize::Three(sizes) => sizes,
        }
    }
}

impl LaunchSize<Integer<'_>> {
    /// The sizes, where `lookup` gives the values of the variables.
    ///
    /// # Errors
    ///
    /// See [`Integer::eval`].
    pub fn eval(&self, lookup: &dyn Fn(&str) -> Option<i64>) -> Result<LaunchSize<i64>, EvalError> {
        Ok(match self {
            LaunchSize::One([x]) => LaunchSize::One([x.eval(lookup)?]),
            LaunchSize::Two([x, y]) => LaunchSize::Two([x.eval(lookup)?, y.eval(lookup)?]),
            LaunchSize::Three([x, y, z]) => {
                LaunchSize::Three([x.eval(lookup)?, y.eval(lookup)?, z.eval(lookup)?])
            }
        })
    }

    #[must_use]
    pub fn into_owned(self) -> LaunchSize<Integer<'static>> {
        match self {
            LaunchSize::One(sizes) => LaunchSize::One(sizes.map(Integer::into_owned)),
            LaunchSize::Two(sizes) => LaunchSize::Two(sizes.map(Integer::into_owned)),
            LaunchSize::Three(sizes) => LaunchSize::Three(sizes.map(Integer::into_owned)),
        }
    }
}

impl<'t, T: Part<'t>> Part<'t> for LaunchSize<T> {
    #[inline]
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        let expected = "None or a tuple of one to three ints";
        let mut items = value.sequence(expected)?;
        Ok(match (items.next(), items.next(), items.next(), items.next()) {
            (Some(x), None, ..) => LaunchSize::One([T::read(x)?]),
            (Some(x), Some(y), None, _) => LaunchSize::Two([T::read(x)?, T::read(y)?]),
            (Some(x), Some(y), Some(z), None) => {
                LaunchSize::Three([T::read(x)?, T::read(y)?, T::read(z)?])
            }
            _ => return Err(value.mismatch(expected)),
        })
    }

    /// All three sizes, as the client gives them.
    #[inline]
    fn read_plain(cursor: &mut Cursor<'t>) -> Option<Self> {
        cursor.eat_text("(")?;
        let x = T::read_plain(cursor)?;
        cursor.eat_text(", ")?;
        let y = T::read_plain(cursor)?;
        cursor.eat_text(", ")?;
        let z = T::read_plain(cursor)?;
        cursor.eat_text(")")?;
        Some(LaunchSize::Three([x, y, z]))
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_tuple(self.as_slice(), f)
    }
}

record! {
    "ProgramFree" + session ProgramFree<'t> {
        "name" name: Cow<'t, str>,
        "datahash" source: Digest,
    }
}

record! {
    "Transfer" + session Transfer<'t> {
        "buffer_num" source: BufferNumber,
        "dsession" destination_session: SessionKey<'t>,
        "dbuffer_num" destination: BufferNumber,
    }
}

record! {
    "Wait" + session Wait {
        "event" event: EventNumber,
    }
}
