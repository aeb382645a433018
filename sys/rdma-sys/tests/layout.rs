//! Holds the declarations against the real headers: sizes and places of fields, and constants, as a
//! C program prints them that includes `infiniband/verbs.h`; and the calls against the library.
//!
//! Absent: any device. Where the headers (libibverbs-dev) or the library (libibverbs1) are not
//! installed, the test says so in a line that begins with `SKIPPED:`.

use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::process::Command;

use rdma_sys as ours;

/// What the C program is to print, and the lines of the program.
#[derive(Default)]
struct Sheet {
    expected: String,
    program: String,
}

impl Sheet {
    fn line(&mut self, name: &str, expression: &str, value: usize) {
        writeln!(self.expected, "{name} {value}").expect("a string takes all");
        let print = format!("printf(\"{name} %zu\\n\", (size_t)({expression}));");
        writeln!(self.program, "  {print}").expect("a string takes all");
    }
}

fn bytes_of<T, F>(_: fn(*const T) -> *const F) -> usize {
    size_of::<F>()
}

/// Every field that has the same name on both sides.
macro_rules! layout {
    ($sheet:ident: $($kind:literal $name:ident { $($field:ident),* $(,)? })*) => {$(
        let of = concat!($kind, " ", stringify!($name)).trim();
        $sheet.line(&format!("{of}"), &format!("sizeof({of})"), size_of::<ours::$name>());
        $({
            let field = stringify!($field);
            let at = offset_of!(ours::$name, $field);
            $sheet.line(&format!("{of}.{field} at"), &format!("offsetof({of}, {field})"), at);
            // SAFETY: nobody calls this function: its type alone tells the type of the field.
            let bytes = bytes_of(|whole: *const ours::$name| unsafe { &raw const (*whole).$field });
            $sheet.line(
                &format!("{of}.{field} bytes"),
                &format!("sizeof((({of} *)0)->{field})"),
                bytes,
            );
        })*
    )*};
}

macro_rules! constants {
    ($sheet:ident: $($module:ident { $($constant:ident),* $(,)? })*) => {$($({
        let value = usize::try_from(ours::$module::$constant).expect("small");
        $sheet.line(stringify!($constant), stringify!($constant), value);
    })*)*};
}

macro_rules! flags {
    ($sheet:ident: $($name:ident { $($constant:ident),* $(,)? })*) => {$($({
        let value = usize::try_from(ours::$name::$constant.0).expect("small");
        $sheet.line(stringify!($constant), stringify!($constant), value);
    })*)*};
}

fn structures(sheet: &mut Sheet) {
    layout! { sheet:
        "union" ibv_gid { raw, global }
        "struct" ibv_gid_entry { gid, gid_index, port_num, gid_type, ndev_ifindex }
        "struct" ibv_device_attr {
            fw_ver, node_guid, sys_image_guid, max_mr_size, page_size_cap, vendor_id,
            vendor_part_id, hw_ver, max_qp, max_qp_wr, device_cap_flags, max_sge, max_sge_rd,
            max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom, max_ee_rd_atom, max_res_rd_atom,
            max_qp_init_rd_atom, max_ee_init_rd_atom, atomic_cap, max_ee, max_rdd, max_mw,
            max_raw_ipv6_qp, max_raw_ethy_qp, max_mcast_grp, max_mcast_qp_attach,
            max_total_mcast_qp_attach, max_ah, max_fmr, max_map_per_fmr, max_srq, max_srq_wr,
            max_srq_sge, max_pkeys, local_ca_ack_delay, phys_port_cnt,
        }
        "struct" ibv_port_attr {
            state, max_mtu, active_mtu, gid_tbl_len, port_cap_flags, max_msg_sz, bad_pkey_cntr,
            qkey_viol_cntr, pkey_tbl_len, lid, sm_lid, lmc, max_vl_num, sm_sl, subnet_timeout,
            init_type_reply, active_width, active_speed, phys_state, link_layer, flags,
            port_cap_flags2,
        }
        "struct" ibv_wc {
            wr_id, status, opcode, vendor_err, byte_len, qp_num, src_qp, wc_flags, pkey_index, slid,
            sl, dlid_path_bits,
        }
        "struct" ibv_pd { context, handle }
        "struct" ibv_mr { context, pd, addr, length, handle, lkey, rkey }
        "struct" ibv_global_route { dgid, flow_label, sgid_index, hop_limit, traffic_class }
        "struct" ibv_ah_attr {
            grh, dlid, sl, src_path_bits, static_rate, is_global, port_num,
        }
    }
}

fn queues(sheet: &mut Sheet) {
    layout! { sheet:
        "struct" ibv_qp_cap {
            max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data,
        }
        "struct" ibv_qp_init_attr {
            qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all,
        }
        "struct" ibv_qp_attr {
            qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num,
            qp_access_flags, cap, ah_attr, alt_ah_attr, pkey_index, alt_pkey_index,
            en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer,
            port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout, rate_limit,
        }
        "struct" ibv_sge { addr, length, lkey }
        "struct" ibv_send_wr {
            wr_id, next, sg_list, num_sge, opcode, send_flags, wr, qp_type,
        }
        "struct" ibv_mw_bind_info { mr, addr, length, mw_access_flags }
        "struct" ibv_qp {
            context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num, state, qp_type, mutex,
            cond, events_completed,
        }
        "struct" ibv_comp_channel { context, fd, refcnt }
        "struct" ibv_cq {
            context, channel, cq_context, handle, cqe, mutex, cond, comp_events_completed,
            async_events_completed,
        }
        "struct" ibv_context_ops { poll_cq, req_notify_cq, post_send }
        "struct" ibv_context {
            device, ops, cmd_fd, async_fd, num_comp_vectors, mutex, abi_compat,
        }
    }
}

fn places_inside(sheet: &mut Sheet) {
    // It grows at its beginning, so only distances to its end stay.
    let of = "struct verbs_context";
    let end = size_of::<ours::verbs_context>();
    for (field, at) in [
        ("query_port", offset_of!(ours::verbs_context, query_port)),
        ("sz", offset_of!(ours::verbs_context, sz)),
        ("context", offset_of!(ours::verbs_context, context)),
    ] {
        let expression = format!("sizeof({of}) - offsetof({of}, {field})");
        sheet.line(&format!("{of}.{field} from the end"), &expression, end - at);
    }
    for (field, at) in [
        ("rdma.remote_addr", offset_of!(ours::rdma_t, remote_addr)),
        ("rdma.rkey", offset_of!(ours::rdma_t, rkey)),
    ] {
        let at = offset_of!(ours::ibv_send_wr, wr) + at;
        let expression = format!("offsetof(struct ibv_send_wr, wr.{field})");
        sheet.line(&format!("struct ibv_send_wr.wr.{field}"), &expression, at);
    }
}

fn values(sheet: &mut Sheet) {
    constants! { sheet:
        ibv_gid_type { IBV_GID_TYPE_IB, IBV_GID_TYPE_ROCE_V1, IBV_GID_TYPE_ROCE_V2 }
        ibv_mtu { IBV_MTU_256, IBV_MTU_512, IBV_MTU_1024, IBV_MTU_2048, IBV_MTU_4096 }
        ibv_port_state {
            IBV_PORT_NOP, IBV_PORT_DOWN, IBV_PORT_INIT, IBV_PORT_ARMED, IBV_PORT_ACTIVE,
            IBV_PORT_ACTIVE_DEFER,
        }
        ibv_qp_state {
            IBV_QPS_RESET, IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_SQD, IBV_QPS_SQE,
            IBV_QPS_ERR,
        }
        ibv_qp_type { IBV_QPT_RC }
        ibv_wc_status {
            IBV_WC_SUCCESS, IBV_WC_LOC_LEN_ERR, IBV_WC_LOC_QP_OP_ERR, IBV_WC_LOC_EEC_OP_ERR,
            IBV_WC_LOC_PROT_ERR, IBV_WC_WR_FLUSH_ERR, IBV_WC_MW_BIND_ERR, IBV_WC_BAD_RESP_ERR,
            IBV_WC_LOC_ACCESS_ERR, IBV_WC_REM_INV_REQ_ERR, IBV_WC_REM_ACCESS_ERR, IBV_WC_REM_OP_ERR,
            IBV_WC_RETRY_EXC_ERR, IBV_WC_RNR_RETRY_EXC_ERR, IBV_WC_LOC_RDD_VIOL_ERR,
            IBV_WC_REM_INV_RD_REQ_ERR, IBV_WC_REM_ABORT_ERR, IBV_WC_INV_EECN_ERR,
            IBV_WC_INV_EEC_STATE_ERR, IBV_WC_FATAL_ERR, IBV_WC_RESP_TIMEOUT_ERR, IBV_WC_GENERAL_ERR,
        }
        ibv_wr_opcode { IBV_WR_RDMA_WRITE }
    }
    flags! { sheet:
        ibv_access_flags { IBV_ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_WRITE, IBV_ACCESS_REMOTE_READ }
        ibv_qp_attr_mask {
            IBV_QP_STATE, IBV_QP_ACCESS_FLAGS, IBV_QP_PKEY_INDEX, IBV_QP_PORT, IBV_QP_AV,
            IBV_QP_PATH_MTU, IBV_QP_TIMEOUT, IBV_QP_RETRY_CNT, IBV_QP_RNR_RETRY, IBV_QP_RQ_PSN,
            IBV_QP_MAX_QP_RD_ATOMIC, IBV_QP_MIN_RNR_TIMER, IBV_QP_SQ_PSN,
            IBV_QP_MAX_DEST_RD_ATOMIC, IBV_QP_DEST_QPN,
        }
        ibv_send_flags { IBV_SEND_SIGNALED }
    }
}

/// Whether the compiler finds the headers.
fn has_headers(compiler: &str) -> bool {
    let probe = "#include <infiniband/verbs.h>\n";
    let dir = tempfile::tempdir().expect("there is room");
    let source = dir.path().join("probe.c");
    std::fs::write(&source, probe).expect("there is room");
    let run = Command::new(compiler).arg("-E").arg(&source).output();
    run.expect("there is a C compiler").status.success()
}

#[test]
fn declarations_are_those_of_the_headers() {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    if !has_headers(&compiler) {
        println!("SKIPPED: no infiniband/verbs.h here: apt-get install libibverbs-dev");
        return;
    }
    let mut sheet = Sheet::default();
    structures(&mut sheet);
    queues(&mut sheet);
    places_inside(&mut sheet);
    values(&mut sheet);
    let source = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include <infiniband/verbs.h>\n\
         int main(void) {{\n{}  return 0;\n}}\n",
        sheet.program
    );
    let dir = tempfile::tempdir().expect("there is room");
    let (file, program) = (dir.path().join("layout.c"), dir.path().join("layout"));
    std::fs::write(&file, source).expect("there is room");
    let compiled = Command::new(&compiler).arg("-o").arg(&program).arg(&file).output();
    let compiled = compiled.expect("there is a C compiler");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let printed = Command::new(&program).output().expect("just made");
    let printed = String::from_utf8(printed.stdout).expect("plain text");
    for (ours, theirs) in sheet.expected.lines().zip(printed.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(sheet.expected.lines().count(), printed.lines().count());
}

#[test]
fn calls_are_found_in_the_library() {
    // SAFETY: libibverbs reads its settings when it is loaded, and starts nothing.
    let library = match unsafe { libloading::Library::new(ours::LIBRARY) } {
        Ok(library) => std::mem::ManuallyDrop::new(library),
        Err(_) => {
            println!("SKIPPED: no {} here: apt-get install libibverbs1", ours::LIBRARY);
            return;
        }
    };
    // SAFETY: that is libibverbs, and it stays open.
    let verbs = unsafe { ours::Verbs::look_up(&library) };
    assert!(verbs.is_ok(), "{:?}", verbs.err());
}
