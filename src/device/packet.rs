//! Packets: what the server asks of a worker, as words of 64 bits.
//!
//! Owns: [`Packet`] and [`Step`] (of a graph), encoded and decoded. Pure: no memory but the
//! caller's slices, and decoding copies nothing.
//!
//! A packet's first word holds its kind in the low byte and its length in words, itself included,
//! in the high half. Addresses are [`Address`]es, since only the worker knows where it has mapped
//! what.

/// A place in memory that the worker has imported: the segment's number in the worker's table, and
/// an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address(u64);

impl Address {
    const OFFSET_BITS: u32 = 41;
    const SEGMENT_BITS: u32 = 22;
    /// Segments one worker can have at a time.
    pub(super) const SEGMENTS_MAX: u32 = 1 << Self::SEGMENT_BITS;

    /// `offset` is at most [`crate::config::DeviceLimits::ALLOCATION_BYTES_MAX`].
    pub(super) fn new(segment: u32, offset: u64) -> Address {
        assert!(segment < Self::SEGMENTS_MAX && offset >> Self::OFFSET_BITS == 0, "no such place");
        Address(u64::from(segment) << Self::OFFSET_BITS | offset)
    }

    pub(super) fn segment(self) -> u32 {
        let segment = self.0 >> Self::OFFSET_BITS & u64::from(Self::SEGMENTS_MAX - 1);
        u32::try_from(segment).expect("masked")
    }

    pub(super) fn offset(self) -> u64 {
        self.0 & ((1 << Self::OFFSET_BITS) - 1)
    }

    pub(super) fn word(self) -> u64 {
        self.0
    }

    pub(super) fn from_word(word: u64) -> Address {
        Address(word)
    }
}

/// In a graph's step, marks a word that is a position in the run's inputs or integers instead of an
/// address or an integer.
pub(super) const VARIABLE: u64 = 1 << 63;

/// One entry of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    /// Memory of the device that only the worker reaches becomes this segment.
    Alloc {
        segment: u32,
        bytes: u64,
    },
    Copy {
        to: Address,
        from: Address,
        bytes: u64,
    },
    /// Gives the pages of freed memory back.
    Discard {
        at: Address,
        bytes: u64,
    },
    /// A part of a segment is to be reached by network cards. The next descriptor on the socket is
    /// the end of the channel through which the answer goes.
    Export {
        at: Address,
        bytes: u64,
    },
    /// What network cards have written is seen by what comes later.
    Flush,
    /// The segment is gone.
    Forget {
        segment: u32,
    },
    GraphBuild {
        graph: u32,
        steps: &'a [u64],
    },
    GraphDrop {
        graph: u32,
    },
    GraphRun {
        graph: u32,
        timer: Option<u32>,
        /// Buffers, as in a launch.
        inputs: &'a [u64],
        ints: &'a [u64],
    },
    /// The next descriptor on the socket is this segment's.
    Import {
        segment: u32,
        bytes: u64,
        writable: bool,
    },
    /// The packet itself lies elsewhere.
    Indirect {
        at: Address,
        words: u64,
    },
    Launch {
        program: u32,
        timer: Option<u32>,
        /// The global and the local size, three words each and zeros for none, where the worker
        /// drives a device. Nothing where it calls kernels itself.
        sizes: &'a [u64],
        /// Addresses; where the worker drives a device each is followed by a length.
        buffers: &'a [u64],
        values: &'a [u64],
    },
    Load {
        program: u32,
        /// Where the outcome goes.
        status: Address,
        /// Bytes of the kernel's name, and of the object.
        bytes: (u32, u64),
        name: &'a [u64],
        object: &'a [u64],
    },
    /// Memory that another worker shares becomes this segment. The next descriptor on the socket is
    /// the end of the channel through which it comes, or does not.
    OpenShared {
        segment: u32,
        bytes: u64,
        /// Where the outcome goes.
        status: Address,
    },
    /// Memory of the device that another worker shares becomes this segment. The next descriptor on
    /// the socket is the end of a channel to that worker, through which it gets it.
    Share {
        segment: u32,
        bytes: u64,
    },
    Signal,
    Unload {
        program: u32,
    },
    Wait {
        timeline: u32,
        value: u64,
    },
    /// Bytes that came with the packet.
    Write {
        to: Address,
        bytes: u64,
        data: &'a [u64],
    },
}

/// The kinds, numbered.
mod kind {
    pub(super) const ALLOC: u8 = 15;
    pub(super) const COPY: u8 = 1;
    pub(super) const DISCARD: u8 = 2;
    pub(super) const EXPORT: u8 = 18;
    pub(super) const FLUSH: u8 = 19;
    pub(super) const FORGET: u8 = 3;
    pub(super) const GRAPH_BUILD: u8 = 4;
    pub(super) const GRAPH_DROP: u8 = 5;
    pub(super) const GRAPH_RUN: u8 = 6;
    pub(super) const IMPORT: u8 = 7;
    pub(super) const INDIRECT: u8 = 8;
    pub(super) const LAUNCH: u8 = 9;
    pub(super) const LOAD: u8 = 10;
    pub(super) const OPEN_SHARED: u8 = 16;
    pub(super) const SHARE: u8 = 17;
    pub(super) const SIGNAL: u8 = 11;
    pub(super) const UNLOAD: u8 = 12;
    pub(super) const WAIT: u8 = 13;
    pub(super) const WRITE: u8 = 14;
}

/// Two halves of a word.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn halves(word: u64) -> (u32, u32) {
    let low = u32::try_from(word & u64::from(u32::MAX)).expect("masked");
    let high = u32::try_from(word >> 32).expect("shifted");
    (low, high)
}

/// No timer, as a timer's number.
const UNTIMED: u32 = u32::MAX;

fn timer(word: u32) -> Option<u32> {
    (word != UNTIMED).then_some(word)
}

/// Counts of a packet are far below 2^32, since its words lie in memory that the server allocated.
fn count(words: &[u64]) -> u32 {
    u32::try_from(words.len()).expect("a packet has few words")
}

impl<'a> Packet<'a> {
    /// Appends the packet's words to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u64>) {
        let start = out.len();
        out.push(0);
        let kind = self.encode_fields(out);
        let words = count(&out[start..]);
        out[start] = pair(u32::from(kind), words);
    }

    fn encode_fields(&self, out: &mut Vec<u64>) -> u8 {
        match *self {
            Packet::Alloc { segment, bytes } => {
                out.extend([u64::from(segment), bytes]);
                kind::ALLOC
            }
            Packet::Copy { to, from, bytes } => {
                out.extend([to.word(), from.word(), bytes]);
                kind::COPY
            }
            Packet::Discard { at, bytes } => {
                out.extend([at.word(), bytes]);
                kind::DISCARD
            }
            Packet::Export { at, bytes } => {
                out.extend([at.word(), bytes]);
                kind::EXPORT
            }
            Packet::Flush => kind::FLUSH,
            Packet::Forget { segment } => {
                out.push(u64::from(segment));
                kind::FORGET
            }
            Packet::Import { segment, bytes, writable } => {
                out.extend([pair(segment, u32::from(writable)), bytes]);
                kind::IMPORT
            }
            Packet::Indirect { at, words } => {
                out.extend([at.word(), words]);
                kind::INDIRECT
            }
            Packet::OpenShared { segment, bytes, status } => {
                out.extend([u64::from(segment), bytes, status.word()]);
                kind::OPEN_SHARED
            }
            Packet::Share { segment, bytes } => {
                out.extend([u64::from(segment), bytes]);
                kind::SHARE
            }
            Packet::Signal => kind::SIGNAL,
            Packet::Wait { timeline, value } => {
                out.extend([u64::from(timeline), value]);
                kind::WAIT
            }
            Packet::Write { to, bytes, data } => {
                out.extend([to.word(), bytes]);
                out.extend_from_slice(data);
                kind::WRITE
            }
            Packet::GraphBuild { .. } | Packet::GraphDrop { .. } | Packet::GraphRun { .. } => {
                self.encode_graph(out)
            }
            Packet::Launch { .. } | Packet::Load { .. } | Packet::Unload { .. } => {
                self.encode_program(out)
            }
        }
    }

    fn encode_graph(&self, out: &mut Vec<u64>) -> u8 {
        match *self {
            Packet::GraphBuild { graph, steps } => {
                out.push(u64::from(graph));
                out.extend_from_slice(steps);
                kind::GRAPH_BUILD
            }
            Packet::GraphRun { graph, timer, inputs, ints } => {
                out.extend([pair(graph, timer.unwrap_or(UNTIMED)), u64::from(count(inputs))]);
                out.extend_from_slice(inputs);
                out.extend_from_slice(ints);
                kind::GRAPH_RUN
            }
            Packet::GraphDrop { graph } => {
                out.push(u64::from(graph));
                kind::GRAPH_DROP
            }
            _ => unreachable!("called for graphs"),
        }
    }

    fn encode_program(&self, out: &mut Vec<u64>) -> u8 {
        match *self {
            Packet::Launch { program, timer, sizes, buffers, values } => {
                let args = [sizes, buffers, values];
                out.extend_from_slice(&launch_head(program, timer, args)[1..]);
                args.iter().for_each(|part| out.extend_from_slice(part));
                kind::LAUNCH
            }
            Packet::Load { program, status, bytes: (name_bytes, bytes), name, object } => {
                out.extend([pair(program, name_bytes), status.word(), bytes]);
                out.extend_from_slice(name);
                out.extend_from_slice(object);
                kind::LOAD
            }
            Packet::Unload { program } => {
                out.push(u64::from(program));
                kind::UNLOAD
            }
            _ => unreachable!("called for programs"),
        }
    }

    /// The packet at the start of `words`.
    pub(super) fn decode(words: &'a [u64]) -> Option<Packet<'a>> {
        let (kind, len) = head(*words.first()?);
        let fields = words.get(1..len)?;
        Some(match (kind, fields) {
            (kind::ALLOC, &[segment, bytes]) => Packet::Alloc { segment: halves(segment).0, bytes },
            (kind::COPY, &[to, from, bytes]) => {
                Packet::Copy { to: Address(to), from: Address(from), bytes }
            }
            (kind::DISCARD, &[at, bytes]) => Packet::Discard { at: Address(at), bytes },
            (kind::EXPORT, &[at, bytes]) => Packet::Export { at: Address(at), bytes },
            (kind::FLUSH, &[]) => Packet::Flush,
            (kind::FORGET, &[segment]) => Packet::Forget { segment: halves(segment).0 },
            (kind::GRAPH_BUILD, [graph, steps @ ..]) => {
                Packet::GraphBuild { graph: halves(*graph).0, steps }
            }
            (kind::GRAPH_DROP, &[graph]) => Packet::GraphDrop { graph: halves(graph).0 },
            (kind::GRAPH_RUN, [which, inputs, rest @ ..]) => {
                let (graph, timed) = halves(*which);
                let (inputs, ints) = rest.split_at_checked(usize::try_from(*inputs).ok()?)?;
                Packet::GraphRun { graph, timer: timer(timed), inputs, ints }
            }
            (kind::IMPORT, &[which, bytes]) => {
                let (segment, writable) = halves(which);
                Packet::Import { segment, bytes, writable: writable != 0 }
            }
            (kind::INDIRECT, &[at, words]) => Packet::Indirect { at: Address(at), words },
            (kind::LAUNCH, [which, counts, args @ ..]) => {
                let (program, timed) = halves(*which);
                let [sizes, buffers, values] = launch_args(*counts, args)?;
                Packet::Launch { program, timer: timer(timed), sizes, buffers, values }
            }
            (kind::LOAD, [which, status, bytes, rest @ ..]) => {
                let (program, name_bytes) = halves(*which);
                let (status, bytes) = (Address(*status), (name_bytes, *bytes));
                let name_words = usize::try_from(name_bytes.div_ceil(8)).ok()?;
                let (name, object) = rest.split_at_checked(name_words)?;
                Packet::Load { program, status, bytes, name, object }
            }
            (kind::OPEN_SHARED, &[segment, bytes, status]) => {
                let (segment, status) = (halves(segment).0, Address(status));
                Packet::OpenShared { segment, bytes, status }
            }
            (kind::SHARE, &[segment, bytes]) => Packet::Share { segment: halves(segment).0, bytes },
            (kind::SIGNAL, []) => Packet::Signal,
            (kind::UNLOAD, &[program]) => Packet::Unload { program: halves(program).0 },
            (kind::WAIT, &[timeline, value]) => {
                Packet::Wait { timeline: halves(timeline).0, value }
            }
            (kind::WRITE, [to, bytes, data @ ..]) => {
                Packet::Write { to: Address(*to), bytes: *bytes, data }
            }
            _ => return None,
        })
    }
}

/// The first words of a launch. The sizes, the buffers and the values follow, and that is all.
pub(super) fn launch_head(program: u32, timer: Option<u32>, args: [&[u64]; 3]) -> [u64; 3] {
    let [sizes, buffers, values] = args.map(count);
    let words = 3 + sizes + buffers + values;
    let which = pair(program, timer.unwrap_or(UNTIMED));
    [pair(u32::from(kind::LAUNCH), words), which, pair(buffers, sizes)]
}

/// The sizes, the buffers and the values of a launch.
fn launch_args(counts: u64, args: &[u64]) -> Option<[&[u64]; 3]> {
    let (buffers, sizes) = halves(counts);
    let (sizes, args) = args.split_at_checked(usize::try_from(sizes).ok()?)?;
    let (buffers, values) = args.split_at_checked(usize::try_from(buffers).ok()?)?;
    Some([sizes, buffers, values])
}

/// The kind and the length in words, of a first word.
pub(super) fn head(word: u64) -> (u8, usize) {
    let (low, words) = halves(word);
    let kind = u8::try_from(low).unwrap_or(0);
    (kind, usize::try_from(words).expect("32 bits fit"))
}

/// One step of a graph. Words of buffers are addresses, or inputs' positions with [`VARIABLE`];
/// those of sizes and values are integers, or positions in the run's integers with [`VARIABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    Copy {
        to: u64,
        from: u64,
        bytes: u64,
    },
    Launch {
        program: u32,
        /// Positions of buffers that are written. Nothing where the worker calls kernels itself.
        outputs: &'a [u64],
        sizes: &'a [u64],
        buffers: &'a [u64],
        values: &'a [u64],
    },
}

const STEP_COPY: u8 = 1;
const STEP_LAUNCH: u8 = 2;

impl<'a> Step<'a> {
    /// Appends the step's words to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u64>) {
        let start = out.len();
        out.push(0);
        let kind = match *self {
            Step::Copy { to, from, bytes } => {
                out.extend([to, from, bytes]);
                STEP_COPY
            }
            Step::Launch { program, outputs, sizes, buffers, values } => {
                let counts = pair(count(buffers), count(sizes));
                out.extend([pair(program, count(outputs)), counts]);
                let parts = [outputs, sizes, buffers, values];
                parts.iter().for_each(|part| out.extend_from_slice(part));
                STEP_LAUNCH
            }
        };
        let words = count(&out[start..]);
        out[start] = pair(u32::from(kind), words);
    }

    /// The step at the start of `words`, and the words after it.
    pub(super) fn decode(words: &'a [u64]) -> Option<(Step<'a>, &'a [u64])> {
        let (kind, len) = head(*words.first()?);
        let (step, rest) = words.split_at_checked(len)?;
        let step = match (kind, step.get(1..)?) {
            (STEP_COPY, &[to, from, bytes]) => Step::Copy { to, from, bytes },
            (STEP_LAUNCH, [which, counts, args @ ..]) => {
                let (program, outputs) = halves(*which);
                let (outputs, args) = args.split_at_checked(usize::try_from(outputs).ok()?)?;
                let [sizes, buffers, values] = launch_args(*counts, args)?;
                Step::Launch { program, outputs, sizes, buffers, values }
            }
            _ => return None,
        };
        Some((step, rest))
    }
}

/// An integer of a kernel, as a word of its arguments.
pub(super) fn int_word(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

/// Appends bytes as words, the last one filled up with zeros.
pub(super) fn push_bytes(out: &mut Vec<u64>, bytes: &[u8]) {
    let (words, rest) = bytes.as_chunks::<8>();
    out.extend(words.iter().map(|word| u64::from_ne_bytes(*word)));
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        out.push(u64::from_ne_bytes(last));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec(any::<u64>(), 0..9)
    }

    fn check(packet: Packet<'_>) {
        let mut words = vec![7];
        packet.encode(&mut words);
        assert_eq!(Packet::decode(&words[1..]), Some(packet));
        assert_eq!(head(words[1]).1, words.len() - 1, "the first word says the length");
        for len in 1..words.len() - 1 {
            assert_eq!(Packet::decode(&words[1..=len]), None, "{packet:?} cut to {len}");
        }
    }

    proptest! {
        #[test]
        fn packet_encoded_and_decoded_is_the_same(
            (a, b, n) in (any::<u32>(), 0..UNTIMED, any::<u64>()),
            (x, y, z) in (words(), words(), words()),
        ) {
            let at = Address::new(a % Address::SEGMENTS_MAX, n >> 23);
            let to = Address::new(b % Address::SEGMENTS_MAX, n & 0xFFFF_FFFF);
            for timer in [None, Some(b)] {
                let mut launch = launch_head(a, timer, [&z, &x, &y]).to_vec();
                launch.extend(z.iter().chain(&x).chain(&y));
                let (program, sizes, buffers, values) = (a, &*z, &*x, &*y);
                let expected = Packet::Launch { program, timer, sizes, buffers, values };
                prop_assert_eq!(Packet::decode(&launch), Some(expected));
                check(expected);
                check(Packet::GraphRun { graph: a, timer, inputs: &x, ints: &y });
            }
            check(Packet::Alloc { segment: a, bytes: n });
            check(Packet::Copy { to, from: at, bytes: n });
            check(Packet::Discard { at, bytes: n });
            check(Packet::Forget { segment: a });
            check(Packet::GraphBuild { graph: a, steps: &x });
            check(Packet::GraphDrop { graph: a });
            check(Packet::Import { segment: a, bytes: n, writable: b % 2 == 0 });
            check(Packet::Indirect { at, words: n });
            let bytes = (u32::try_from(8 * y.len()).unwrap(), n);
            check(Packet::Load { program: a, status: at, bytes, name: &y, object: &x });
            check(Packet::OpenShared { segment: a, bytes: n, status: at });
            check(Packet::Share { segment: a, bytes: n });
            check(Packet::Signal);
            check(Packet::Unload { program: a });
            check(Packet::Wait { timeline: a, value: n });
            check(Packet::Write { to, bytes: n, data: &x });
        }

        #[test]
        fn steps_encoded_and_decoded_are_the_same(
            (a, n) in (any::<u32>(), any::<u64>()),
            (x, y, z) in (words(), words(), words()),
        ) {
            let steps = [
                Step::Launch { program: a, outputs: &y, sizes: &z, buffers: &x, values: &y },
                Step::Copy { to: n, from: !n, bytes: u64::from(a) },
            ];
            let mut out = Vec::new();
            steps.iter().for_each(|step| step.encode(&mut out));
            let mut rest = out.as_slice();
            for step in steps {
                let (decoded, after) = Step::decode(rest).unwrap();
                prop_assert_eq!(decoded, step);
                rest = after;
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn words_of_any_kind_decode_without_panic(words in words()) {
            let _ = (Packet::decode(&words), Step::decode(&words));
        }

        #[test]
        fn address_keeps_segment_and_offset(
            segment in 0..Address::SEGMENTS_MAX,
            offset in 0..1_u64 << Address::OFFSET_BITS,
        ) {
            let address = Address::new(segment, offset);
            prop_assert_eq!((address.segment(), address.offset()), (segment, offset));
            prop_assert_eq!(address.word() & VARIABLE, 0);
        }
    }

    #[test]
    fn bytes_as_words_keep_their_order() {
        let mut words = Vec::new();
        push_bytes(&mut words, b"0123456789");
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes, b"0123456789\0\0\0\0\0\0");
    }
}
