//! The part of libibverbs that outboard uses, declared by hand and looked up in a library that is
//! opened at run time, so that a build needs no rdma-core and a binary starts without.
//!
//! Owns: the types that cross the interface, the constants ([`constants`]), the functions that the
//! headers define inline (they go through tables of the device's driver), and [`Verbs`], the table
//! of exported calls. Names are those of `infiniband/verbs.h`, spelled for Rust as the crate does
//! whose place this one takes.
//!
//! Absent: receive queues, shared queues, datagrams, atomics, and all other calls that nobody makes
//! here. Structures that the library allocates are declared whole, since fields at their ends are
//! read. The tests hold all of it against the real headers where those are installed.

#![expect(non_camel_case_types, non_snake_case, reason = "the names are those of the C headers")]

mod constants;

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::{offset_of, size_of};

pub use constants::*;
use libc::{pthread_cond_t, pthread_mutex_t};
use libloading::Library;

/// The name under which the library is found. It has been the same since 2006.
pub const LIBRARY: &str = "libibverbs.so.1";

#[repr(C)]
#[derive(Clone, Copy)]
pub union ibv_gid {
    pub raw: [u8; 16],
    pub global: ibv_gid_global_t,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ibv_gid_global_t {
    /// In network byte order.
    pub subnet_prefix: u64,
    /// In network byte order.
    pub interface_id: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_gid_entry {
    pub gid: ibv_gid,
    pub gid_index: u32,
    pub port_num: u32,
    /// One of [`ibv_gid_type`].
    pub gid_type: u32,
    pub ndev_ifindex: u32,
}

/// Only ever behind a pointer: its name and its kind are asked for by calls.
#[repr(C)]
#[derive(Debug)]
pub struct ibv_device {
    _opaque: [u8; 0],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ibv_device_attr {
    pub fw_ver: [c_char; 64],
    pub node_guid: u64,
    pub sys_image_guid: u64,
    pub max_mr_size: u64,
    pub page_size_cap: u64,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    pub hw_ver: u32,
    pub max_qp: c_int,
    pub max_qp_wr: c_int,
    pub device_cap_flags: c_uint,
    pub max_sge: c_int,
    pub max_sge_rd: c_int,
    pub max_cq: c_int,
    pub max_cqe: c_int,
    pub max_mr: c_int,
    pub max_pd: c_int,
    pub max_qp_rd_atom: c_int,
    pub max_ee_rd_atom: c_int,
    pub max_res_rd_atom: c_int,
    pub max_qp_init_rd_atom: c_int,
    pub max_ee_init_rd_atom: c_int,
    pub atomic_cap: c_uint,
    pub max_ee: c_int,
    pub max_rdd: c_int,
    pub max_mw: c_int,
    pub max_raw_ipv6_qp: c_int,
    pub max_raw_ethy_qp: c_int,
    pub max_mcast_grp: c_int,
    pub max_mcast_qp_attach: c_int,
    pub max_total_mcast_qp_attach: c_int,
    pub max_ah: c_int,
    pub max_fmr: c_int,
    pub max_map_per_fmr: c_int,
    pub max_srq: c_int,
    pub max_srq_wr: c_int,
    pub max_srq_sge: c_int,
    pub max_pkeys: u16,
    pub local_ca_ack_delay: u8,
    pub phys_port_cnt: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ibv_port_attr {
    pub state: ibv_port_state::Type,
    pub max_mtu: ibv_mtu::Type,
    pub active_mtu: ibv_mtu::Type,
    pub gid_tbl_len: c_int,
    pub port_cap_flags: u32,
    pub max_msg_sz: u32,
    pub bad_pkey_cntr: u32,
    pub qkey_viol_cntr: u32,
    pub pkey_tbl_len: u16,
    pub lid: u16,
    pub sm_lid: u16,
    pub lmc: u8,
    pub max_vl_num: u8,
    pub sm_sl: u8,
    pub subnet_timeout: u8,
    pub init_type_reply: u8,
    pub active_width: u8,
    pub active_speed: u8,
    pub phys_state: u8,
    pub link_layer: u8,
    pub flags: u8,
    pub port_cap_flags2: u16,
}

#[repr(C)]
pub struct ibv_wc {
    pub wr_id: u64,
    pub status: ibv_wc_status::Type,
    pub opcode: c_uint,
    pub vendor_err: u32,
    pub byte_len: u32,
    pub imm_data_invalidated_rkey_union: imm_data_invalidated_rkey_union_t,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: c_uint,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub union imm_data_invalidated_rkey_union_t {
    /// In network byte order.
    pub imm_data: u32,
    pub invalidated_rkey: u32,
}

#[repr(C)]
#[derive(Debug)]
pub struct ibv_pd {
    pub context: *mut ibv_context,
    pub handle: u32,
}

#[repr(C)]
#[derive(Debug)]
pub struct ibv_mr {
    pub context: *mut ibv_context,
    pub pd: *mut ibv_pd,
    pub addr: *mut c_void,
    pub length: usize,
    pub handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

/// Only ever behind a pointer that is null here.
#[repr(C)]
#[derive(Debug)]
pub struct ibv_srq {
    _opaque: [u8; 0],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_global_route {
    pub dgid: ibv_gid,
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_ah_attr {
    pub grh: ibv_global_route,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ibv_qp_cap {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ibv_qp_init_attr {
    pub qp_context: *mut c_void,
    pub send_cq: *mut ibv_cq,
    pub recv_cq: *mut ibv_cq,
    pub srq: *mut ibv_srq,
    pub cap: ibv_qp_cap,
    pub qp_type: ibv_qp_type::Type,
    pub sq_sig_all: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ibv_qp_attr {
    pub qp_state: ibv_qp_state::Type,
    pub cur_qp_state: ibv_qp_state::Type,
    pub path_mtu: ibv_mtu::Type,
    pub path_mig_state: c_uint,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: c_uint,
    pub cap: ibv_qp_cap,
    pub ah_attr: ibv_ah_attr,
    pub alt_ah_attr: ibv_ah_attr,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ibv_sge {
    pub addr: u64,
    pub length: u32,
    pub lkey: u32,
}

#[repr(C)]
pub struct ibv_send_wr {
    pub wr_id: u64,
    pub next: *mut ibv_send_wr,
    pub sg_list: *mut ibv_sge,
    pub num_sge: c_int,
    pub opcode: ibv_wr_opcode::Type,
    pub send_flags: c_uint,
    pub imm_data_invalidated_rkey_union: imm_data_invalidated_rkey_union_t,
    pub wr: wr_t,
    pub qp_type: qp_type_t,
    pub bind_mw_tso_union: bind_mw_tso_union_t,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub union wr_t {
    pub rdma: rdma_t,
    pub atomic: atomic_t,
    pub ud: ud_t,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct rdma_t {
    pub remote_addr: u64,
    pub rkey: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct atomic_t {
    pub remote_addr: u64,
    pub compare_add: u64,
    pub swap: u64,
    pub rkey: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ud_t {
    pub ah: *mut c_void,
    pub remote_qpn: u32,
    pub remote_qkey: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub union qp_type_t {
    pub xrc: xrc_t,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xrc_t {
    pub remote_srqn: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub union bind_mw_tso_union_t {
    pub bind_mw: bind_mw_t,
    pub tso: tso_t,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct bind_mw_t {
    pub mw: *mut c_void,
    pub rkey: u32,
    pub bind_info: ibv_mw_bind_info,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ibv_mw_bind_info {
    pub mr: *mut ibv_mr,
    pub addr: u64,
    pub length: u64,
    pub mw_access_flags: c_uint,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tso_t {
    pub hdr: *mut c_void,
    pub hdr_sz: u16,
    pub mss: u16,
}

#[repr(C)]
pub struct ibv_qp {
    pub context: *mut ibv_context,
    pub qp_context: *mut c_void,
    pub pd: *mut ibv_pd,
    pub send_cq: *mut ibv_cq,
    pub recv_cq: *mut ibv_cq,
    pub srq: *mut ibv_srq,
    pub handle: u32,
    pub qp_num: u32,
    pub state: ibv_qp_state::Type,
    pub qp_type: ibv_qp_type::Type,
    pub mutex: pthread_mutex_t,
    pub cond: pthread_cond_t,
    pub events_completed: u32,
}

#[repr(C)]
#[derive(Debug)]
pub struct ibv_comp_channel {
    pub context: *mut ibv_context,
    pub fd: c_int,
    pub refcnt: c_int,
}

#[repr(C)]
pub struct ibv_cq {
    pub context: *mut ibv_context,
    pub channel: *mut ibv_comp_channel,
    pub cq_context: *mut c_void,
    pub handle: u32,
    pub cqe: c_int,
    pub mutex: pthread_mutex_t,
    pub cond: pthread_cond_t,
    pub comp_events_completed: u32,
    pub async_events_completed: u32,
}

/// The calls that a device's driver makes itself, in the process. Those that are called here have
/// their types; the others hold the places.
#[repr(C)]
pub struct ibv_context_ops {
    pub _before_poll_cq: [*mut c_void; 11],
    pub poll_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int>,
    pub req_notify_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int>,
    pub _before_post_send: [*mut c_void; 12],
    pub post_send:
        Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int>,
    pub _after_post_send: [*mut c_void; 6],
}

#[repr(C)]
pub struct ibv_context {
    pub device: *mut ibv_device,
    pub ops: ibv_context_ops,
    pub cmd_fd: c_int,
    pub async_fd: c_int,
    pub num_comp_vectors: c_int,
    pub mutex: pthread_mutex_t,
    pub abi_compat: *mut c_void,
}

/// What lies around an [`ibv_context`] of any library from 2011 on. It grows at its beginning.
#[repr(C)]
pub struct verbs_context {
    pub query_port:
        Option<unsafe extern "C" fn(*mut ibv_context, u8, *mut ibv_port_attr, usize) -> c_int>,
    pub _after_query_port: [*mut c_void; 37],
    pub _ABI_placeholder3: u64,
    /// Bytes from where the structure begins in that library to its end.
    pub sz: usize,
    pub context: ibv_context,
}

/// Posts a list of requests to a queue pair's send queue. Zero, or an error number and the request
/// that was not taken; those before it were.
///
/// # Safety
///
/// The queue pair exists, the list ends, and what it points to lasts for the call. Memory of the
/// entries of scatter lists belongs to the device until the requests are complete.
#[must_use]
pub unsafe fn ibv_post_send(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
) -> c_int {
    // SAFETY: the queue pair exists, says the caller; the library has filled in its context.
    let context = unsafe { (*qp).context };
    // SAFETY: a context outlives its queue pairs.
    let post_send = unsafe { (*context).ops.post_send };
    let Some(post_send) = post_send else { return libc::EOPNOTSUPP };
    // SAFETY: passed on to the caller.
    unsafe { post_send(qp, wr, bad_wr) }
}

/// Takes completions. Their number, or something negative.
///
/// # Safety
///
/// The completion queue exists, and there is room for `num_entries` at `wc`.
#[must_use]
pub unsafe fn ibv_poll_cq(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: the queue exists, says the caller; the library has filled in its context.
    let context = unsafe { (*cq).context };
    // SAFETY: a context outlives its queues.
    let poll_cq = unsafe { (*context).ops.poll_cq };
    let Some(poll_cq) = poll_cq else { return -libc::EOPNOTSUPP };
    // SAFETY: passed on to the caller.
    unsafe { poll_cq(cq, num_entries, wc) }
}

/// Asks for an event with the next completion. Zero or an error number.
///
/// # Safety
///
/// The completion queue exists and has a channel.
#[must_use]
pub unsafe fn ibv_req_notify_cq(cq: *mut ibv_cq, solicited_only: c_int) -> c_int {
    // SAFETY: the queue exists, says the caller; the library has filled in its context.
    let context = unsafe { (*cq).context };
    // SAFETY: a context outlives its queues.
    let req_notify_cq = unsafe { (*context).ops.req_notify_cq };
    let Some(req_notify_cq) = req_notify_cq else { return libc::EOPNOTSUPP };
    // SAFETY: passed on to the caller.
    unsafe { req_notify_cq(cq, solicited_only) }
}

/// What is known of a port. Zero or an error number.
///
/// # Safety
///
/// The context is open, and `port_attr` can be written.
#[must_use]
pub unsafe fn ibv_query_port(
    context: *mut ibv_context,
    port_num: u8,
    port_attr: *mut ibv_port_attr,
) -> c_int {
    // SAFETY: the context is open, says the caller.
    let abi = unsafe { (*context).abi_compat };
    if abi.addr() != usize::MAX {
        return libc::EOPNOTSUPP;
    }
    // SAFETY: a context that says so lies inside of such a structure.
    let around = unsafe { context.byte_sub(offset_of!(verbs_context, context)) };
    let around: *mut verbs_context = around.cast();
    // SAFETY: the size lies right before the context, whatever the version.
    let bytes = unsafe { (*around).sz };
    if bytes < size_of::<verbs_context>() - offset_of!(verbs_context, query_port) {
        return libc::EOPNOTSUPP;
    }
    // SAFETY: the structure is large enough to have the field.
    let query_port = unsafe { (*around).query_port };
    let Some(query_port) = query_port else { return libc::EOPNOTSUPP };
    // SAFETY: passed on to the caller; the length is that of the structure.
    unsafe { query_port(context, port_num, port_attr, size_of::<ibv_port_attr>()) }
}

/// A call that a library lacks: it is too old, or another library altogether.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing(pub &'static str);

macro_rules! calls {
    ($($name:ident($($argument:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        /// The exported calls, looked up.
        #[derive(Clone, Copy, Debug)]
        pub struct Verbs {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Verbs {
            /// The names of all that is looked up.
            pub const CALLS: &[&str] = &[$(stringify!($name)),*];

            /// Looks every call up.
            ///
            /// # Errors
            ///
            /// Names the first that is missing.
            ///
            /// # Safety
            ///
            /// The library is libibverbs, and is never closed.
            pub unsafe fn look_up(library: &Library) -> Result<Verbs, Missing> {
                Ok(Verbs {
                    // SAFETY: the caller says that this is libibverbs, whose headers the types of
                    // the fields follow.
                    $($name: unsafe { symbol(library, stringify!($name)) }?,)*
                })
            }
        }
    };
}

calls! {
    _ibv_query_gid_ex(
        *mut ibv_context,
        u32,
        u32,
        *mut ibv_gid_entry,
        u32,
        usize,
    ) -> c_int;
    ibv_ack_cq_events(*mut ibv_cq, c_uint);
    ibv_alloc_pd(*mut ibv_context) -> *mut ibv_pd;
    ibv_close_device(*mut ibv_context) -> c_int;
    ibv_create_comp_channel(*mut ibv_context) -> *mut ibv_comp_channel;
    ibv_create_cq(
        *mut ibv_context,
        c_int,
        *mut c_void,
        *mut ibv_comp_channel,
        c_int,
    ) -> *mut ibv_cq;
    ibv_create_qp(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
    ibv_dealloc_pd(*mut ibv_pd) -> c_int;
    ibv_dereg_mr(*mut ibv_mr) -> c_int;
    ibv_destroy_comp_channel(*mut ibv_comp_channel) -> c_int;
    ibv_destroy_cq(*mut ibv_cq) -> c_int;
    ibv_destroy_qp(*mut ibv_qp) -> c_int;
    ibv_free_device_list(*mut *mut ibv_device);
    ibv_get_cq_event(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    ibv_get_device_list(*mut c_int) -> *mut *mut ibv_device;
    ibv_get_device_name(*mut ibv_device) -> *const c_char;
    ibv_modify_qp(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    ibv_open_device(*mut ibv_device) -> *mut ibv_context;
    ibv_query_device(*mut ibv_context, *mut ibv_device_attr) -> c_int;
    ibv_reg_dmabuf_mr(*mut ibv_pd, u64, usize, u64, c_int, c_int) -> *mut ibv_mr;
    ibv_reg_mr_iova2(*mut ibv_pd, *mut c_void, usize, u64, c_uint) -> *mut ibv_mr;
}

/// Looks one call up.
///
/// # Safety
///
/// `F` is the type of the function of that name, and the library is never closed.
unsafe fn symbol<F: Copy>(library: &Library, name: &'static str) -> Result<F, Missing> {
    // SAFETY: the caller vouches for the type.
    let symbol = unsafe { library.get::<F>(name) };
    symbol.map(|symbol| *symbol).map_err(|_| Missing(name))
}
