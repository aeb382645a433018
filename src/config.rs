//! Every limit of the server, its default, and the reason for it.
//!
//! Absent: the command line (`main.rs`), which only overrides fields of these structs.

use std::path::PathBuf;
use std::time::Duration;

/// Limits of the command text. See `wire`.
#[derive(Clone, Copy, Debug)]
pub struct WireLimits {
    /// Bytes of one batch's command text. The longest recorded from tinygrad's own tests is
    /// 1.07 MB (5,249 commands). A command that is not spelled as the stock client does it is read
    /// in one go, at an eighth of 2.5 GB/s: this bounds how long others wait.
    pub text_bytes_max: usize,
    /// Commands of one batch. The largest recorded batch has 5,249.
    pub commands_max: usize,
    /// Nesting of tuples, lists, dicts and calls. Launch sizes are trees of `UOp` calls, two levels
    /// a node; recorded texts stay below 40.
    pub depth_max: usize,
    /// Digits of one integer literal. CPython itself stops at 4,300; nothing here exceeds 64 bits,
    /// and leading zeros are no reason for more.
    pub digits_max: usize,
    /// Items of one tuple, list or dict: kernels of a graph, buffers of a transfer.
    pub items_max: usize,
    /// Values of one command, nested ones included. A value takes 16 bytes while its command is
    /// read. A kernel of a graph has about 100; the largest recorded graphs have some thousands.
    pub nodes_max: usize,
}

impl Default for WireLimits {
    fn default() -> Self {
        WireLimits {
            text_bytes_max: 16 << 20,
            commands_max: 256 << 10,
            depth_max: 256,
            digits_max: 64,
            items_max: 1 << 20,
            nodes_max: 8 << 20,
        }
    }
}

/// Limits of a request body's blobs. See `wire::envelope`.
#[derive(Clone, Copy, Debug)]
pub struct EnvelopeLimits {
    /// Bytes of one blob. A tensor of a current accelerator's whole memory fits.
    pub blob_bytes_max: u64,
    /// Blobs of one body. A batch refers to at most a few blobs per command, and the largest
    /// recorded one has some thousand commands. Each blob costs some 200 bytes to keep account of.
    pub blobs_max: u64,
}

impl Default for EnvelopeLimits {
    fn default() -> Self {
        EnvelopeLimits { blob_bytes_max: 256 << 30, blobs_max: 1 << 16 }
    }
}

/// Limits of an HTTP request. See `http`.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Bytes of the request line and the headers together. The stock client sends 100 bytes;
    /// proxies add some hundreds.
    pub head_bytes_max: usize,
    /// Header fields of one request, for the same reason.
    pub headers_max: usize,
    /// Bytes of the request target. The only one served is `/batch`.
    pub target_bytes_max: usize,
    /// Bytes of one body. A tensor of a current accelerator's whole memory fits.
    pub body_bytes_max: u64,
    /// Bytes of one chunk-size line, extensions included (RFC 9112 section 7.1.1 lets the server
    /// bound it).
    pub chunk_line_bytes_max: usize,
    /// Bytes of all trailer fields.
    pub trailer_bytes_max: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        HttpLimits {
            head_bytes_max: 16 << 10,
            headers_max: 64,
            target_bytes_max: 1 << 10,
            body_bytes_max: 256 << 30,
            chunk_line_bytes_max: 256,
            trailer_bytes_max: 4 << 10,
        }
    }
}

/// Limits of sessions and what they own. See `engine`.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Buffers of one session, views included. Each costs about 100 bytes of the server's memory.
    pub buffers_per_session_max: usize,
    /// Commands that run before others get their turn: at a fifth of a microsecond each, this
    /// bounds the delay of others to about 25 microseconds. A request of somebody else waits for
    /// such a turn when it comes and whenever it goes on (`perf/NOTES.md`).
    pub commands_per_slice: usize,
    /// Compilations of one batch under way at once, so that one client does not fill the queue.
    pub compilations_ahead_max: usize,
    /// Compilations of one identity under way at once: half of those that can wait, so that others
    /// find room. Of these, half are for commands whose turn it is: compiling ahead takes no more
    /// than the rest.
    pub compilations_per_identity_max: usize,
    /// Events of one session that are set and not waited for yet.
    pub events_per_session_max: usize,
    /// Items of a graph that are sorted before others get their turn: at half a microsecond each,
    /// this bounds the delay of others to less than 100 microseconds.
    pub graph_items_per_slice: usize,
    /// Kernels and copies, or inputs, of one graph.
    pub graph_nodes_max: usize,
    /// Graphs of one session.
    pub graphs_per_session_max: usize,
    /// Device memory of all sessions of one identity. All that there is by default: to fill a
    /// machine with one model is what a server is for, and only who shares it out knows how.
    pub memory_per_identity_bytes_max: u64,
    /// Device memory of one session; none of its own by default, for the same reason.
    pub memory_per_session_bytes_max: u64,
    /// Names of one session that are remembered because a command failed to make them.
    pub missing_max: usize,
    /// Programs of one session. BEAM search keeps some thousands at once.
    pub programs_per_session_max: usize,
    /// Peers of one identity that are connected by RDMA, on one shard. A peer has one connection,
    /// or one for each of its queue pairs.
    pub rdma_peers_per_identity_max: usize,
    /// Sessions of one connection. A client opens one for each device that it uses.
    pub sessions_per_connection_max: usize,
    /// Sessions of one identity, of all its connections. A session that computes has a process,
    /// some descriptors and some MB: this leaves others most of the 32,768 processes that Linux
    /// has numbers for by default.
    pub sessions_per_identity_max: usize,
    /// Bytes of command text that are read before others get their turn: at 2.5 GB/s, or an eighth
    /// of that where it is not the stock client's spelling, this bounds their delay to 7 or 50
    /// microseconds. One command is read in one go, unless it is a graph in the stock client's
    /// spelling.
    pub text_slice_bytes: usize,
    /// Length of a program's source. The longest that tinygrad's tests produce has 300 KB.
    pub source_bytes_max: u64,
    /// How long a `Wait` waits for an event that nobody sets. The stock client gives up on its
    /// socket after 300 seconds.
    pub wait_time_max: Duration,
}

impl Default for EngineLimits {
    fn default() -> Self {
        EngineLimits {
            buffers_per_session_max: 1 << 20,
            commands_per_slice: 128,
            compilations_ahead_max: 32,
            compilations_per_identity_max: 512,
            events_per_session_max: 1 << 16,
            graph_items_per_slice: 128,
            graph_nodes_max: 1 << 16,
            graphs_per_session_max: 1 << 16,
            memory_per_identity_bytes_max: u64::MAX,
            memory_per_session_bytes_max: u64::MAX,
            missing_max: 1 << 12,
            programs_per_session_max: 1 << 16,
            rdma_peers_per_identity_max: 256,
            sessions_per_connection_max: 256,
            sessions_per_identity_max: 4096,
            source_bytes_max: 4 << 20,
            text_slice_bytes: 16 << 10,
            wait_time_max: Duration::from_secs(290),
        }
    }
}

impl EngineLimits {
    /// Memory that a shard keeps for the commands of its next batch. 10,000 launches take 1 MiB.
    pub const BATCH_BYTES_KEPT_MAX: usize = 4 << 20;
    /// The same, for the sessions that a batch names.
    pub const BATCH_SESSIONS_KEPT_MAX: usize = 1 << 10;
    /// Steps of a graph that its device records in one go, and runs as one submission. Recording
    /// takes some 200 nanoseconds each; a graph of 10,000 kernels is to be one submission.
    pub const GRAPH_SECTION_STEPS_MAX: usize = 16 << 10;
    /// How often one batch may linger for a device, see [`DeviceLimits::LINGER`]: it holds the core
    /// meanwhile.
    pub const LINGERS_PER_BATCH_MAX: u32 = 16;
}

/// Limits of what says who may do what. See `identity`.
#[derive(Clone, Copy, Debug)]
pub struct AccessLimits;

impl AccessLimits {
    /// Length of an identity's name: a host's or a person's.
    pub const NAME_BYTES_MAX: usize = 64;
    /// Bytes of a file of certificates, or of the key to one: all authorities of a system have
    /// 200 KB.
    pub const PEM_FILE_BYTES_MAX: u64 = 1 << 20;
    /// The shortest token: 128 bits in base64. Whoever can reach the server can try tokens as fast
    /// as it answers.
    pub const TOKEN_BYTES_MIN: usize = 22;
    /// The longest, well below what a request's head may have.
    pub const TOKEN_BYTES_MAX: usize = 512;
    /// Bytes of a file of tokens: some ten thousand of them.
    pub const TOKEN_FILE_BYTES_MAX: u64 = 1 << 20;
}

/// Limits of connections and of the memory that they hold. See `shard`.
#[derive(Clone, Copy, Debug)]
pub struct ShardLimits {
    /// Longest pause inside a body. A client that died in a way that TCP does not see holds its
    /// staging memory no longer than twice this: in a long blob the time begins anew, once, to see
    /// whether few bytes have come.
    pub body_pause_max: Duration,
    /// Connections of one shard. An idle one costs some KiB.
    pub connections_max: usize,
    /// Connections of one identity, on all shards: as many as it may have sessions. A stock client
    /// has one, whatever it does.
    pub connections_per_identity_max: usize,
    /// Bytes that are sent or received in one go while other connections of the shard are busy:
    /// two of these may come before another's reply, at a few GB/s.
    pub crowd_piece_bytes: usize,
    /// For how long a connection counts as busy after a request.
    pub crowd_time: Duration,
    /// How long a drain waits for batches that run.
    pub drain_time_max: Duration,
    /// Time for the whole head of a request, from its first byte.
    pub head_time_max: Duration,
    /// Bytes taken from one socket before others get their turn. At some GB/s this is
    /// about 100 microseconds.
    pub io_slice_bytes: usize,
    /// Idle seconds before TCP asks whether the peer is alive. A connection that owns sessions is
    /// never closed for being idle, only for being dead.
    pub keepalive_idle: Duration,
    /// Blobs up to here are held in the server's own memory and copied through the queue; longer
    /// ones are received where the device takes them from.
    pub private_blob_bytes_max: u64,
    /// Bytes of one body's blobs that are held so: no budget counts them. What exceeds them goes
    /// where long blobs go.
    pub private_bytes_per_body_max: u64,
    /// Replies up to here are copied behind their heads and go out with the next receive. A copy of
    /// so much costs less than an entry into the kernel does.
    pub reply_copied_bytes_max: usize,
    /// After how long without anything under way a shard has the allocator give freed memory back
    /// to the system. It does so for what was freed a second ago or earlier; a client that pauses
    /// for less finds the memory warm.
    pub rest: Duration,
    /// How long a peer may take nothing of a reply, whether it is silent or says that it has no
    /// room. The stock client sends to all its servers before it reads from any, and is patient
    /// with each for 300 seconds: so a reply may lie unread for so long. A peer that is dead is
    /// given up after as long, too.
    pub send_pause_max: Duration,
    /// Bytes of one operation that sends. It copies what the socket's buffer has room for and waits
    /// for more, so others have their turn in between whatever its size; with small ones the socket
    /// runs dry at the end of each.
    pub send_piece_bytes: usize,
    /// How long a body waits for staging memory, with its socket unread, before it is refused. The
    /// one that has waited longest waits twice as long, so that of two that wait for each other one
    /// gets on. Together less than a client's patience (300 s).
    pub staging_wait_max: Duration,
    /// How often what is under way is looked at: watchdogs, dead clients, time limits. Nothing is
    /// looked at while nothing is under way.
    pub tick: Duration,
    /// Pieces of a reply from here on are sent from where they are, without a copy, on all ways but
    /// loopback, which copies in the end. Pinning pages and the second completion have a price: on
    /// a device that copies nothing they are even at 4 KiB, and at 32 KiB 5.2 microseconds against
    /// 6.9 (`perf/NOTES.md`). The second completion comes with the peer's acknowledgement and may
    /// have to wake the shard, so the gain has to be worth that.
    pub zero_copy_bytes_min: usize,
}

impl Default for ShardLimits {
    fn default() -> Self {
        ShardLimits {
            body_pause_max: Duration::from_secs(60),
            connections_max: 8192,
            connections_per_identity_max: 4096,
            crowd_piece_bytes: 128 << 10,
            crowd_time: Duration::from_secs(1),
            drain_time_max: Duration::from_secs(30),
            head_time_max: Duration::from_secs(20),
            io_slice_bytes: 1 << 20,
            keepalive_idle: Duration::from_secs(30),
            private_blob_bytes_max: 16 << 10,
            private_bytes_per_body_max: 1 << 20,
            reply_copied_bytes_max: 16 << 10,
            rest: Duration::from_secs(2),
            send_pause_max: Duration::from_secs(360),
            send_piece_bytes: 4 << 20,
            staging_wait_max: Duration::from_secs(30),
            tick: Duration::from_millis(100),
            zero_copy_bytes_min: 32 << 10,
        }
    }
}

impl ShardLimits {
    /// Connections beyond [`Self::connections_max`] that are told so at one time. Each has a
    /// descriptor for half a second at most.
    pub const TURNED_AWAY_MAX: usize = 64;
    /// Above all sizes that the allocator keeps for the next allocation.
    pub const UNKEPT_BYTES: usize = 64 << 20;
}

/// Limits of errands to other servers. See `shard::peer`.
#[derive(Clone, Copy, Debug)]
pub struct PeerLimits {
    /// How long nothing may be heard of a peer that has something to do: longer than it lets a body
    /// wait for staging memory, and much less than a client's patience (300 s).
    pub silence_max: Duration,
}

impl Default for PeerLimits {
    fn default() -> Self {
        PeerLimits { silence_max: Duration::from_secs(90) }
    }
}

impl PeerLimits {
    /// Bytes of one answer. Only errors have any; the Python server's have a trace.
    pub const ANSWER_BYTES_MAX: u64 = 1 << 20;
    /// How much of an error is passed on.
    pub const ANSWER_BYTES_KEPT: usize = 512;
    /// How often a connection is tried, and how long it is between two: a server that is started
    /// again is back in less.
    pub const CONNECT_TRIES: u32 = 4;
    pub const CONNECT_PAUSE: Duration = Duration::from_millis(250);
    /// How long one try may take: TCP asks again after 1, 3 and 7 seconds.
    pub const CONNECT_TIME_MAX: Duration = Duration::from_secs(8);
    /// Connections of one shard to one peer at once, and as many again for events. Errands beyond
    /// that wait.
    pub const CONNECTIONS_PER_LANE_MAX: usize = 4;
    /// Errands of one batch under way at once.
    pub const ERRANDS_PER_BATCH_MAX: usize = 64;
    /// Buffers up to so much together share a request.
    pub const GROUP_BYTES_MAX: u64 = 1 << 20;
    /// How long the handshake of TLS may take: as long as the other server lets the head of a
    /// request take by default, which is what it takes the handshake for.
    pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(20);
    /// How long a connection without work is kept.
    pub const IDLE_TIME_MAX: Duration = Duration::from_secs(30);
    /// Requests that are sent ahead of their answers.
    pub const REQUESTS_AHEAD_MAX: usize = 64;
}

/// Each shard's ring. See `shard::ring`.
#[derive(Clone, Copy, Debug)]
pub struct RingLimits {
    /// How long a shard watches its ring after it was last active before it sleeps. Being woken
    /// costs a client some tens of microseconds on a virtual machine, watching costs the core.
    pub busy_poll: Duration,
    /// Buffers that wait for bytes to arrive, for all connections of a shard. A connection has one
    /// only while a request of its is under way; where none is left, memory is allocated instead.
    /// At most 32,768.
    pub chunks: u16,
    /// Size of each: a batch of some 50 commands.
    pub chunk_bytes: usize,
    /// Completions that the ring holds. The kernel keeps what exceeds them, at a cost.
    pub completions: u32,
    /// Operations that are handed over at once; more go in several goes.
    pub submissions: u32,
}

impl Default for RingLimits {
    fn default() -> Self {
        RingLimits {
            busy_poll: Duration::ZERO,
            chunks: 256,
            chunk_bytes: 16 << 10,
            completions: 4096,
            submissions: 256,
        }
    }
}

/// What is hashed when, and why. See `blob`.
///
/// A blob's name is how commands of the same batch refer to it, and nothing else: blobs are not
/// kept, so a false name can only mislead the client that sent it, and TCP's checksum guards
/// against accidents on the way. Names of clients that say nothing are therefore not checked unless
/// the server is told to. A client that does say how it makes names (`Outboard-Digest`) wants its
/// bytes checked from end to end, and they always are. What the server itself keeps is never named
/// by a client's hash: compiled programs are found by a keyed BLAKE3 of their source, and objects
/// on disk carry a BLAKE3 of their bytes.
#[derive(Clone, Copy, Debug)]
pub struct HashPolicy {
    /// Bytes that are hashed in one go, right after they were received: they are still in the
    /// core's second-level cache, and at 1.5 GB/s (SHA-256) others wait less than 200 microseconds.
    pub piece_bytes: usize,
    /// Whether names of clients that do not say how they made them are checked as SHA-256, which
    /// is what the stock client makes them with. It costs about two thirds of a core-second per GB.
    pub verify_sha256: bool,
}

impl Default for HashPolicy {
    fn default() -> Self {
        HashPolicy { piece_bytes: 256 << 10, verify_sha256: false }
    }
}

/// Which C compiler makes the kernels of the CPU device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CompilerChoice {
    /// The newest clang that works, else gcc: clang alone knows bfloat16 on most systems.
    #[default]
    Any,
    /// The newest clang that works.
    Clang,
    Gcc,
    /// This program and no other.
    Path(PathBuf),
}

/// Where compiled objects are kept between runs of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CacheDir {
    /// `$XDG_CACHE_HOME/outboard`, or `~/.cache/outboard`.
    #[default]
    User,
    /// This directory, made if it is missing. It must be the server's own: whoever can write to it
    /// can put code into the CPU device's workers.
    At(PathBuf),
    Off,
}

/// Compiling source for devices. See `compile`.
#[derive(Clone, Debug)]
pub struct CompileConfig {
    /// The C compiler.
    pub compiler: CompilerChoice,
    /// comgr and NVRTC, by path or by a name for the dynamic loader; the newest where `None`.
    pub comgr: Option<PathBuf>,
    pub nvrtc: Option<PathBuf>,
    /// The program that is started with the argument `compile-worker` to load one of those; this
    /// one by `/proc/self/exe`.
    pub worker_exe: PathBuf,
    /// Compilers that run at once. One runs at full speed on one core, so more than the machine's
    /// cores only add memory. While all are busy, connections that have none get up to as many
    /// again, and clients that have none as many once more, so that nobody waits for another's
    /// longest source.
    pub threads: usize,
    /// Sources of one client that wait for a compiler. A beam search sends some hundreds at once;
    /// what waits longer than a client's patience (300 s) is of no use to anybody.
    pub queue_max: usize,
    /// Bytes of one source. The longest recorded from tinygrad is 19 KB; a wholly unrolled kernel
    /// takes a megabyte, and minutes to compile.
    pub source_bytes_max: usize,
    /// Bytes of one object, and of one compiler's messages while it runs. Kernels make 2 to 200 KB.
    pub object_bytes_max: u64,
    /// Bytes of the compiler's messages that a client sees: the first few errors.
    pub message_bytes_max: usize,
    /// Address space of one compiler process. clang with its libraries maps 200 MB before it
    /// starts; kernels of a megabyte need 1 GB more.
    pub memory_bytes_max: u64,
    /// Wall time of one compile. Real kernels take 0.03 to 3 s, and a client gives up after 300 s.
    pub time_max: Duration,
    /// CPU time of one compiler process, for the case that the server dies and leaves it running.
    pub cpu_seconds_max: u64,
    pub cache_dir: CacheDir,
    /// Bytes on disk. Kernels take 4 to 200 KB: room for some tens of thousands.
    pub cache_bytes_max: u64,
    /// Bytes of objects in memory, for sources that come again while the server runs.
    pub cache_memory_bytes_max: usize,
}

impl Default for CompileConfig {
    fn default() -> Self {
        CompileConfig {
            compiler: CompilerChoice::Any,
            comgr: None,
            nvrtc: None,
            worker_exe: PathBuf::from("/proc/self/exe"),
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            queue_max: 1024,
            source_bytes_max: 4 << 20,
            object_bytes_max: 16 << 20,
            message_bytes_max: 2 << 10,
            memory_bytes_max: 2 << 30,
            time_max: Duration::from_secs(60),
            cpu_seconds_max: 60,
            cache_dir: CacheDir::User,
            cache_bytes_max: 1 << 30,
            cache_memory_bytes_max: 32 << 20,
        }
    }
}

/// How the server shares cores with the processes that it starts. See `cores`.
pub struct CoreLimits;

impl CoreLimits {
    /// A shard's turn on its core while others want it. Whoever asks for shorter turns gets the
    /// core sooner when there is something to do; Linux gives no shorter ones.
    pub const SHARD_TURN: Duration = Duration::from_micros(100);
    /// A worker's turn. Longer than a shard's, so that no worker keeps a shard waiting.
    pub const WORKER_TURN: Duration = Duration::from_micros(300);
    /// After how much computing a worker asks whether others want its core. Whoever wakes up there
    /// waits so long for it, or for the kernel's next tick.
    pub const WORKER_YIELD: Duration = Duration::from_micros(100);
    /// How far workers step back for the shards.
    pub const WORKER_NICE: i32 = 5;
    /// How far compilers do: about a tenth of a core is theirs whoever else wants it.
    pub const COMPILER_NICE: i32 = 10;
    /// For how long after somebody's request compilers that others wait for begin elsewhere.
    pub const COMPILER_AWAY_TIME: Duration = Duration::from_secs(1);
    /// A turn of a compiler, and of a thread that frees memory: nobody waits for less of it.
    pub const LONG_TURN: Duration = Duration::from_millis(3);
}

/// Limits of accelerators. See `device`.
#[derive(Clone, Copy, Debug)]
pub struct DeviceLimits {
    /// How long one kernel or one piece of a copy may run before its worker is killed. The longest
    /// kernels of real models on one CPU core take seconds.
    pub kernel_time_max: Duration,
}

impl Default for DeviceLimits {
    fn default() -> Self {
        DeviceLimits { kernel_time_max: Duration::from_secs(60) }
    }
}

impl DeviceLimits {
    /// Grain of allocations, which is also their alignment: two cache lines, as the prefetcher
    /// takes them, and more than any vector register.
    pub const UNIT_BYTES: u64 = 128;
    /// Bytes of a shared segment. Sparse, so a session that uses little costs little; large enough
    /// that a session has few of them.
    pub const SEGMENT_BYTES: u64 = 64 << 20;
    /// Allocations in one shared segment: bounds the allocator's table (256 KiB).
    pub const SEGMENT_ALLOCATIONS_MAX: u32 = 8 << 10;
    /// From this size an allocation has a segment of its own, whose memory returns to the system
    /// when it is freed. Half a shared segment, so that an empty one always has room.
    pub const OWN_SEGMENT_BYTES_MIN: u64 = 32 << 20;
    /// From this size a blob has a segment of its own, which becomes the memory of the buffer that
    /// it fills. That was measured to pay from 64 KiB on, since the worker need not be woken; but
    /// each such buffer has a descriptor, and a mapping here and in the worker.
    pub const STAGED_SEGMENT_BYTES_MIN: u64 = 256 << 10;
    /// Segments of this process beyond which only large blobs have one of their own: well below
    /// the mappings that Linux gives a process by default, which are 65,530.
    pub const STAGED_SEGMENTS_MAX: u64 = 16 << 10;
    /// Bytes of segments that one client's staging keeps, with their pages, for its next long
    /// blobs: what two devices need for copies of 256 MiB that overlap.
    pub const KEPT_BYTES_MAX: u64 = 1 << 30;
    /// Kept segments that make way for one at most: to take down a small one takes some tens of
    /// microseconds.
    pub const KEPT_DROPPED_MAX: usize = 16;
    /// How long it keeps them without use. A client that copies again and again pauses for less.
    pub const KEPT_TIME_MAX: Duration = Duration::from_secs(5);
    /// A kept segment is used for a blob that is shorter by at most a fourth of the blob.
    pub const KEPT_WASTE_DIVISOR: u64 = 4;
    /// The largest allocation: what the offset of a packet's address can say.
    pub const ALLOCATION_BYTES_MAX: u64 = 1 << 40;
    /// Memory that fills little by little is charged to the budget in pieces of this size, and its
    /// pages are made so: one huge page, which takes 0.2 ms.
    pub const CHARGE_BYTES: u64 = 2 << 20;
    /// From this size the pages of freed memory go back to the system. Below, the system call
    /// costs more than the pages are worth.
    pub const DISCARD_BYTES_MIN: u64 = 256 << 10;
    /// From this size a mapping is taken down by a thread of its own: the time grows with the
    /// pages.
    pub const UNMAP_ELSEWHERE_BYTES_MIN: usize = 1 << 20;
    /// Bytes of packets in flight to one worker: some 20,000 launches. A power of two and a
    /// multiple of the page size.
    pub const RING_BYTES: usize = 1 << 20;
    /// Part of the ring that is kept for one call: its packet and the imports it may need.
    pub const RING_CALL_BYTES: usize = Self::RING_BYTES / 4;
    /// The longest packet that lies in the ring; longer ones lie in scratch memory.
    pub const PACKET_BYTES_MAX: usize = 16 << 10;
    /// Bytes for the outcome of one load, message included.
    pub const LOAD_STATUS_BYTES: u64 = 1 << 10;
    /// Timed work whose duration nobody has asked for yet. The oldest is given up for a new one.
    pub const TIMERS: usize = 256;
    /// How long a worker looks for new packets before it sleeps, as a rule.
    pub const WORKER_SPIN: Duration = Duration::from_micros(5);
    /// How long it looks where the last ones came this soon: a wake-up takes 10 microseconds on a
    /// busy core and 50 on an idle one, most of the round trip of a client that waits for each
    /// launch. It lets others have the core meanwhile. Python clients take longer between two.
    pub const WORKER_SPIN_LONG: Duration = Duration::from_micros(100);
    /// How long the server looks whether a worker that is awake reaches a fence, before it has
    /// itself told: that takes the worker a system call, and the server a wake-up.
    pub const LINGER: Duration = Duration::from_micros(10);
    /// How long a device that has work is looked at again and again, before it is asked to tell,
    /// where that was not in vain lately. As long as it takes to be told, so that at worst twice as
    /// much is spent: the driver wakes a thread, which rings a socket, which wakes whoever waits;
    /// each takes 5 to 50 microseconds. The shard's other tasks run between two looks.
    pub const WATCH: Duration = Duration::from_micros(50);
    /// How long a worker may take to open the device that it drives: loading the driver and making
    /// a context takes some seconds where nobody has used the device for a while.
    pub const DRIVER_START_TIME_MAX: Duration = Duration::from_secs(60);
    /// How often a worker looks at a device that has work and says nothing: the doorbell of a
    /// driver does not ring for a fault.
    pub const DRIVER_TICK: Duration = Duration::from_millis(20);
    /// Copies that the server or another device sees pass through shared memory in pieces of this
    /// length: large against a wake-up, and small against the processor's cache.
    pub const PASSAGE_BYTES: u64 = 4 << 20;
    /// Pieces of one copy between two workers, which are longer where it would have more.
    pub const PASSAGES_MAX: u64 = 256;
    /// Where one worker's device reaches another's, copies between them pass through memory of the
    /// source's device in pieces of this length: some 40 microseconds of the fastest links, as long
    /// as it takes to tell the other end.
    pub const WINDOW_PIECE_BYTES: u64 = 16 << 20;
    /// Pieces at a time: one is written while the other is read.
    pub const WINDOW_PIECES: usize = 2;
    /// Such memory, which two sessions keep for as long as they live, is made for no shorter copy.
    pub const WINDOW_COPY_BYTES_MIN: u64 = 1 << 20;
    /// The longest copy between such devices in one call: 64 pieces, or 256 of the others. The
    /// first one of two sessions goes without a window, which is there for the next.
    pub const WINDOW_COPY_BYTES_MAX: u64 = 1 << 30;
    /// Stack of a kernel. Generated kernels keep their accumulators there.
    pub const WORKER_STACK_BYTES: u64 = 64 << 20;
    /// Private memory of a worker above what it has at its start: code of kernels, graphs.
    pub const WORKER_DATA_BYTES: u64 = 512 << 20;
    /// Copies count as progress each time this many bytes are done.
    pub const COPY_PIECE_BYTES: u64 = 64 << 20;
}

/// Limits of GPUs. See `device::gpu`. None of the figures has been measured on one yet: they follow
/// from bandwidths and latencies of current devices as their makers state them.
pub struct GpuLimits;

impl GpuLimits {
    /// Grain of allocations: what drivers align to at most.
    pub const UNIT_BYTES: u64 = 512;
    /// What the driver takes of a device's memory for a process: a context, its stacks and heaps,
    /// the code of all libraries. Some 300 to 500 MB with CUDA.
    pub const CONTEXT_BYTES: u64 = 512 << 20;
    /// Where that would leave room for fewer sessions than this, it is taken to be less.
    pub const CONTEXTS_MIN: u64 = 64;
    /// Freed memory that a session's pool keeps for its next allocation. More would be missing to
    /// others: the budget counts it as free.
    pub const POOL_KEEP_BYTES: u64 = 64 << 20;
    /// What handles of memory come in multiples of, on all devices that have them.
    pub const HANDLE_GRAIN_BYTES: u64 = 2 << 20;
    /// Memory that network cards can be told of is had in pieces of so many bytes at least: to make
    /// and map one takes as long as a hundred launches, and thousands of buffers are short.
    pub const ARENA_PIECE_BYTES: u64 = 32 << 20;
    /// Pinned memory of one session for short uploads: hundreds of private blobs under way.
    pub const IN_RING_BYTES: usize = 4 << 20;
    /// Staged bytes that the shard copies to pinned memory by itself: some 25 microseconds. More is
    /// carried by the device's own thread, which has to be woken.
    pub const COPIED_HERE_BYTES_MAX: usize = 256 << 10;
    /// Copies up to here go through the computing stream: to hand work from one stream to another
    /// takes a few microseconds, in which 100 KB cross the bus.
    pub const SHORT_COPY_BYTES_MAX: u64 = 64 << 10;
    /// Pieces of large uploads: 160 microseconds at 25 GB/s, large against what a copy costs to
    /// submit.
    pub const UPLOAD_PIECE_BYTES: usize = 4 << 20;
    /// A staging segment is registered with the driver when it is used for this time: who comes
    /// back once comes back often, as a client that feeds a training loop does. To register is said
    /// to take 0.1 to 0.3 ms a MiB, one to three times what it takes to copy; so it has paid from
    /// the third to the fifth use on.
    pub const REGISTERED_USES_MIN: u32 = 2;
    /// One is filled, one on its way, one spare.
    pub const UPLOAD_PIECES: usize = 3;
    /// How often the thread that carries uploads looks whether a piece has arrived: a fraction of
    /// what it takes.
    pub const UPLOAD_PAUSE: Duration = Duration::from_micros(40);
    /// Pieces of downloads: what a connection sends in one go.
    pub const OUT_PIECE_BYTES: usize = 4 << 20;
    /// Pieces that a session keeps: two that a connection holds, one that is filled.
    pub const OUT_PIECES_KEPT: usize = 3;
    /// Work that is under way in one session before it has to wait: drivers hold up the calling
    /// thread when about 1,024 launches wait, which would hold up a shard.
    pub const IN_FLIGHT_MAX: usize = 512;
    /// Work that queues up between two marks by which it is seen to move. The watchdog gives it as
    /// much time as all of it may take, so a kernel that does not end is found after eight times
    /// the limit at worst. An event for each would be some tenths of a microsecond a launch.
    pub const UNMARKED_MAX: usize = 8;
    /// The watchdog gives a copy as much time for each of these as a kernel.
    pub const UNIT_COPY_BYTES: u64 = 1 << 30;
    /// Steps of a copy onto itself, on devices without pools.
    pub const COPY_STEPS_MAX: u64 = 256;
    /// Bytes of a copy between devices that do not reach each other which are queued in one go: two
    /// pieces of nine driver calls at most, some 30 microseconds, for what takes ten times as long.
    pub const RELAYED_BYTES_MAX: u64 = 2 * Self::OUT_PIECE_BYTES as u64;
    /// How many of these are under way: one comes in while the next goes out.
    pub const RELAYED_MAX: usize = 2;
    /// Pieces through which they go: as many as can be under way, so that a source waits for no
    /// piece that the destination has yet to empty.
    pub const RELAY_PIECES: usize = 4;
    /// Graphs that the driver holds of one recorded graph. Two can take turns.
    pub const GRAPHS_MADE_MAX: usize = 2;
}

/// RDMA between servers. See `rdma`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaConfig {
    /// The device's name; any where `None`.
    pub device: Option<String>,
    /// The device's port; any that is active where `None`.
    pub port: Option<u8>,
    /// The place of the address in the port's table; the best where `None`.
    pub gid: Option<u8>,
}

impl RdmaConfig {
    /// Requests of one queue pair that are not complete: at the largest messages a quarter of a
    /// gigabyte, which no network needs to be busy. Each takes some 100 bytes of pinned memory.
    pub const QUEUE_DEPTH: u32 = 256;
    /// Bytes of one message. At 100 Gbit/s it takes 84 microseconds: long against what a request
    /// costs, and short enough that several queue pairs share one tensor.
    pub const MESSAGE_BYTES_MAX: u32 = 1 << 20;
    /// Queue pairs to one peer.
    pub const QUEUE_PAIRS_MAX: usize = 64;
    /// How long a request waits for its acknowledgement before it is sent again: 4.096
    /// microseconds times two to this, 67 ms. What the reference's end has.
    pub const ACK_TIMEOUT: u8 = 14;
    /// How often it is sent again: a dead peer is found after half a second to two. One more, 7, is
    /// the most that there is, and the software device takes it for no end.
    pub const RETRIES: u8 = 6;
    /// Places of a peer's buffers that are remembered, for each link: those that a model's copies
    /// between hosts go to again and again. Each takes some 200 bytes.
    pub const PLACES_REMEMBERED_MAX: usize = 4096;
    /// Memory through which copies go that the network card cannot read where they are, two of them
    /// for each link: one message, which takes some 100 microseconds to copy.
    pub const STAGE_BYTES: usize = 1 << 20;
    /// Blobs of one connection for which a server has memory that another one writes by RDMA, and
    /// that no command has used yet. Each is a registration of its own; a copy of more buffers goes
    /// in several turns.
    pub const LANDINGS_PER_CONNECTION_MAX: usize = 1024;
    /// How long a server has memory for a blob that no command uses. The stock client gives up on
    /// its socket after as much, so no copy takes longer.
    pub const LANDING_TIME_MAX: Duration = Duration::from_secs(300);
    /// Bytes of buffers that are written to another server's memory before it is asked to copy them
    /// to their places, unless one buffer has more: as much of its staging memory is taken, for
    /// some milliseconds.
    pub const LANDED_BYTES_PER_TURN: u64 = 64 << 20;
    /// What a thread of RDMA's may take to pin memory or to find a peer, with all that was asked of
    /// it before. A gigabyte takes a tenth of a second, a peer that is not there one second; what
    /// takes longer than this is a driver that hangs, and whoever waits for it hears so.
    pub const PROMISE_TIME_MAX: Duration = Duration::from_secs(60);
    /// Routers on the way to a peer.
    pub const HOPS_MAX: u8 = 64;
}
