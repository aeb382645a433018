//! Queue pairs, and the queues in which their completions come.
//!
//! Owns: bringing a pair from state to state with the parameters that the reference server's end
//! has too, posting requests, taking completions and the events that announce them. Absent: what to
//! post when (`schedule`, `link`).

use std::fmt;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{
    ibv_access_flags, ibv_comp_channel, ibv_cq, ibv_poll_cq, ibv_post_send, ibv_qp, ibv_qp_attr,
    ibv_qp_attr_mask as Mask, ibv_qp_cap, ibv_qp_init_attr, ibv_qp_state, ibv_qp_type,
    ibv_req_notify_cq, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wc, ibv_wr_opcode, rdma_t,
};
use rustix::fs::OFlags;

use super::schedule::Message;
use super::verbs::{check, last_error};
use super::{Address, Change, Domain, QueuePairNumber, QueueState, RdmaError, WorkStatus};
use crate::config::RdmaConfig;

/// Completions that are taken at once.
const COMPLETIONS_AT_ONCE: usize = 32;

/// A descriptor that is readable when a completion was asked for and has come.
struct Channel {
    raw: NonNull<ibv_comp_channel>,
    domain: Arc<Domain>,
}

impl Channel {
    fn new(domain: &Arc<Domain>) -> Result<Channel, RdmaError> {
        let device = domain.device();
        // SAFETY: the context is open.
        let raw = unsafe { (device.verbs().ibv_create_comp_channel)(device.raw()) };
        let raw = NonNull::new(raw).ok_or_else(|| last_error("ibv_create_comp_channel"))?;
        let channel = Channel { raw, domain: Arc::clone(domain) };
        let fd = channel.as_fd();
        rustix::fs::fcntl_getfl(fd)
            .and_then(|flags| rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK))
            .map_err(|error| RdmaError::Call { call: "fcntl", why: error.to_string() })?;
        Ok(channel)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel lives, and so does what the library filled in.
        let fd = unsafe { (*self.raw.as_ptr()).fd };
        // SAFETY: the descriptor is the channel's and open as long as it.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let verbs = self.domain.device().verbs();
        // SAFETY: made once and freed here alone; queues that use it were freed before.
        let code = unsafe { (verbs.ibv_destroy_comp_channel)(self.raw.as_ptr()) };
        debug_assert_eq!(code, 0, "a channel that no queue uses can be freed");
    }
}

/// What a completion says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) work: u64,
    pub(super) queue_pair: QueuePairNumber,
    pub(super) outcome: Result<(), WorkStatus>,
}

/// A queue of completions, of several pairs.
pub(super) struct Completions {
    raw: NonNull<ibv_cq>,
    channel: Option<Channel>,
    domain: Arc<Domain>,
}

// SAFETY: the library's objects belong to no thread, and its calls take locks of their own.
unsafe impl Send for Completions {}
// SAFETY: as above.
unsafe impl Sync for Completions {}

impl Completions {
    /// Room for `count` completions, and a channel where somebody will wait for them.
    pub(super) fn new(
        domain: &Arc<Domain>,
        count: u32,
        channel: bool,
    ) -> Result<Arc<Completions>, RdmaError> {
        let channel = channel.then(|| Channel::new(domain)).transpose()?;
        let device = domain.device();
        let events = channel.as_ref().map_or(std::ptr::null_mut(), |c| c.raw.as_ptr());
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        let context = std::ptr::null_mut();
        // SAFETY: the context is open, and the channel, if there is one, is of this context.
        let raw =
            unsafe { (device.verbs().ibv_create_cq)(device.raw(), count, context, events, 0) };
        let raw = NonNull::new(raw).ok_or_else(|| last_error("ibv_create_cq"))?;
        Ok(Arc::new(Completions { raw, channel, domain: Arc::clone(domain) }))
    }

    /// Takes what is there, up to some tens. False where nothing was.
    pub(super) fn take(&self, taken: &mut Vec<Completion>) -> Result<bool, RdmaError> {
        let mut room = [const { MaybeUninit::<ibv_wc>::zeroed() }; COMPLETIONS_AT_ONCE];
        let most = i32::try_from(room.len()).expect("few");
        // SAFETY: the queue lives, and there is room for as many.
        let count = unsafe { ibv_poll_cq(self.raw.as_ptr(), most, room.as_mut_ptr().cast()) };
        let count = usize::try_from(count).map_err(|_| last_error("ibv_poll_cq"))?;
        for entry in &room[..count] {
            // SAFETY: integers, for which any bits are valid, zero to begin with.
            let entry = unsafe { entry.assume_init_ref() };
            let outcome = match entry.status {
                0 => Ok(()),
                status => Err(WorkStatus(status)),
            };
            let queue_pair = QueuePairNumber(entry.qp_num);
            taken.push(Completion { work: entry.wr_id, queue_pair, outcome });
        }
        Ok(count > 0)
    }

    /// Asks for an event with the next completion. What came before this call may not be told: the
    /// caller takes once more.
    pub(super) fn arm(&self) -> Result<(), RdmaError> {
        // SAFETY: the queue lives.
        check("ibv_req_notify_cq", unsafe { ibv_req_notify_cq(self.raw.as_ptr(), 0) })
    }

    /// Takes the events that the channel has. Whether there were any.
    pub(super) fn take_events(&self) -> bool {
        let Some(channel) = &self.channel else { return false };
        let verbs = self.domain.device().verbs();
        let mut any = false;
        loop {
            let (mut queue, mut context) = (std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: the channel lives, and both places take a pointer. It does not wait: its
            // descriptor is nonblocking.
            let code = unsafe {
                let raw = channel.raw.as_ptr();
                (verbs.ibv_get_cq_event)(raw, &raw mut queue, &raw mut context)
            };
            if code != 0 {
                return any;
            }
            // SAFETY: the event is of this queue, the only one of its channel.
            unsafe { (verbs.ibv_ack_cq_events)(self.raw.as_ptr(), 1) };
            any = true;
        }
    }

    /// Readable when an event has come.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }
}

impl fmt::Debug for Completions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completions")
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // Events that nobody took would keep the queue for ever.
        self.take_events();
        // SAFETY: made once and freed here alone; pairs that use it were freed before.
        let code = unsafe { (self.domain.device().verbs().ibv_destroy_cq)(self.raw.as_ptr()) };
        debug_assert_eq!(code, 0, "a queue that no pair uses can be freed");
    }
}

/// One end of a reliable connection. Dropping it ends all access by the peer.
#[derive(Debug)]
pub struct QueuePair {
    raw: NonNull<ibv_qp>,
    state: QueueState,
    depth: usize,
    completions: Arc<Completions>,
}

// SAFETY: as for `Completions`.
unsafe impl Send for QueuePair {}

impl QueuePair {
    /// A pair that a peer can write through and that sends nothing itself.
    ///
    /// # Errors
    ///
    /// Where the device has no more.
    pub fn passive(domain: &Arc<Domain>) -> Result<QueuePair, RdmaError> {
        let completions = Completions::new(domain, 1, false)?;
        QueuePair::new(domain, &completions, 1)
    }

    /// A pair for `depth` requests, or as many as the device makes of it.
    pub(super) fn new(
        domain: &Arc<Domain>,
        completions: &Arc<Completions>,
        depth: u32,
    ) -> Result<QueuePair, RdmaError> {
        let queue = completions.raw.as_ptr();
        let cap = ibv_qp_cap {
            max_send_wr: depth,
            max_recv_wr: 1,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: 0,
        };
        let mut attributes = ibv_qp_init_attr {
            qp_context: std::ptr::null_mut(),
            send_cq: queue,
            recv_cq: queue,
            srq: std::ptr::null_mut(),
            cap,
            qp_type: ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 0,
        };
        let verbs = domain.device().verbs();
        // SAFETY: domain and queue live, and the attributes can be written.
        let raw = unsafe { (verbs.ibv_create_qp)(domain.raw(), &raw mut attributes) };
        let raw = NonNull::new(raw).ok_or_else(|| last_error("ibv_create_qp"))?;
        let depth = usize::try_from(attributes.cap.max_send_wr).unwrap_or(usize::MAX).max(1);
        let completions = Arc::clone(completions);
        let mut pair = QueuePair { raw, state: QueueState::Reset, depth, completions };
        pair.bind()?;
        Ok(pair)
    }

    fn domain(&self) -> &Arc<Domain> {
        &self.completions.domain
    }

    /// Its number, by which its peer knows it.
    #[must_use]
    pub fn number(&self) -> QueuePairNumber {
        // SAFETY: the pair lives; the library filled this in when it was made.
        QueuePairNumber(unsafe { (*self.raw.as_ptr()).qp_num })
    }

    /// What its peer has to be told.
    #[must_use]
    pub fn address(&self) -> Address {
        Address { gid: self.domain().device().chosen().gid.raw, queue_pair: self.number() }
    }

    #[must_use]
    pub fn state(&self) -> QueueState {
        self.state
    }

    /// Requests that may be under way at once: at least what was asked for.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    fn bind(&mut self) -> Result<(), RdmaError> {
        let after = self.state.after(Change::Bind)?;
        let rights =
            ibv_access_flags::IBV_ACCESS_REMOTE_WRITE | ibv_access_flags::IBV_ACCESS_REMOTE_READ;
        let port = self.domain().device().chosen().port;
        let mut a = blank();
        a.qp_state = ibv_qp_state::IBV_QPS_INIT;
        a.port_num = port;
        a.qp_access_flags = rights.0;
        let mask = Mask::IBV_QP_STATE
            | Mask::IBV_QP_PORT
            | Mask::IBV_QP_ACCESS_FLAGS
            | Mask::IBV_QP_PKEY_INDEX;
        self.modify(after, &mut a, mask)
    }

    /// Connects it to its peer, which has to do the same from its side before anything is sent.
    ///
    /// # Errors
    ///
    /// Where the peer's address cannot be reached, or the pair was connected before.
    pub fn connect(&mut self, peer: Address) -> Result<(), RdmaError> {
        let after = self.state.after(Change::Answer)?;
        let chosen = self.domain().device().chosen();
        let mut a = blank();
        a.qp_state = ibv_qp_state::IBV_QPS_RTR;
        a.path_mtu = chosen.mtu.code();
        a.dest_qp_num = peer.queue_pair.0;
        a.rq_psn = 0;
        a.max_dest_rd_atomic = 1;
        a.min_rnr_timer = 12;
        a.ah_attr.is_global = 1;
        a.ah_attr.port_num = chosen.port;
        a.ah_attr.grh.dgid.raw = peer.gid;
        a.ah_attr.grh.sgid_index = chosen.gid.index;
        a.ah_attr.grh.hop_limit = RdmaConfig::HOPS_MAX;
        let mask = Mask::IBV_QP_STATE
            | Mask::IBV_QP_AV
            | Mask::IBV_QP_PATH_MTU
            | Mask::IBV_QP_DEST_QPN
            | Mask::IBV_QP_RQ_PSN
            | Mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | Mask::IBV_QP_MIN_RNR_TIMER;
        self.modify(after, &mut a, mask)?;
        let after = self.state.after(Change::Send)?;
        let mut a = blank();
        a.qp_state = ibv_qp_state::IBV_QPS_RTS;
        a.timeout = RdmaConfig::ACK_TIMEOUT;
        a.retry_cnt = RdmaConfig::RETRIES;
        a.rnr_retry = RdmaConfig::RETRIES;
        a.sq_psn = 0;
        a.max_rd_atomic = 1;
        let mask = Mask::IBV_QP_STATE
            | Mask::IBV_QP_TIMEOUT
            | Mask::IBV_QP_RETRY_CNT
            | Mask::IBV_QP_RNR_RETRY
            | Mask::IBV_QP_SQ_PSN
            | Mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(after, &mut a, mask)
    }

    fn modify(
        &mut self,
        after: QueueState,
        attributes: &mut ibv_qp_attr,
        mask: Mask,
    ) -> Result<(), RdmaError> {
        let verbs = self.domain().device().verbs();
        let mask = i32::try_from(mask.0).expect("the highest bit is 20");
        // SAFETY: the pair lives, and the attributes are what the mask says.
        let code = unsafe { (verbs.ibv_modify_qp)(self.raw.as_ptr(), attributes, mask) };
        check("ibv_modify_qp", code)?;
        self.state = after;
        Ok(())
    }

    /// Posts requests, of which there are at least one and at most as many as there is room for.
    ///
    /// # Errors
    ///
    /// Where the pair does not send, or the driver refuses one: the pair is of no use then.
    pub(super) fn post(&mut self, messages: &[Message]) -> Result<(), RdmaError> {
        if !self.state.sends() {
            return Err(RdmaError::Call {
                call: "ibv_post_send",
                why: format!("the queue pair is in state {}", self.state),
            });
        }
        let sources =
            messages.iter().map(|m| ibv_sge { addr: m.local, length: m.bytes, lkey: m.local_key });
        let mut sources: Vec<ibv_sge> = sources.collect();
        let mut requests: Vec<ibv_send_wr> =
            messages.iter().zip(&mut sources).map(|(m, source)| request(m, source)).collect();
        // From the last to the first, so that each knows where its next is.
        let mut next = std::ptr::null_mut();
        for request in requests.iter_mut().rev() {
            request.next = next;
            next = request;
        }
        if next.is_null() {
            return Ok(());
        }
        let mut refused = std::ptr::null_mut();
        // SAFETY: the pair lives; requests and sources last for the call; the memory that they
        // name is registered, or else the device refuses it.
        let code = unsafe { ibv_post_send(self.raw.as_ptr(), next, &raw mut refused) };
        check("ibv_post_send", code)
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        let verbs = self.domain().device().verbs();
        // SAFETY: made once and freed here alone. After this the device reads and writes nothing
        // on its behalf.
        let code = unsafe { (verbs.ibv_destroy_qp)(self.raw.as_ptr()) };
        debug_assert_eq!(code, 0, "a queue pair can be freed");
    }
}

fn request(message: &Message, source: &mut ibv_sge) -> ibv_send_wr {
    // SAFETY: integers, pointers and unions of those, for which zero is valid.
    let mut request: ibv_send_wr = unsafe { zeroed() };
    request.wr_id = message.work;
    request.sg_list = source;
    request.num_sge = 1;
    request.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE;
    if message.signalled {
        request.send_flags = ibv_send_flags::IBV_SEND_SIGNALED.0;
    }
    request.wr.rdma = rdma_t { remote_addr: message.remote, rkey: message.remote_key };
    request
}

fn blank() -> ibv_qp_attr {
    // SAFETY: integers and a union of those, for which zero is valid.
    unsafe { zeroed() }
}
