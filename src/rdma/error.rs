//! Every way in which RDMA can fail, and what to do about it.

use std::fmt;
use std::time::Duration;

use super::state::OutOfOrder;
use crate::config::RdmaConfig;

/// Why RDMA cannot be used, or a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RdmaError {
    #[error("{call}: {why}")]
    Call { call: &'static str, why: String },
    #[error("the network card could not be told of {bytes} bytes of a device's memory: {why}")]
    DeviceMemory { bytes: u64, why: String },
    #[error("no RDMA device {name}: there is {}", list(known))]
    DeviceUnknown { name: String, known: Vec<String> },
    #[error("{device} has no GID {index} on port {port}")]
    GidUnknown { device: String, port: u8, index: u8 },
    #[error("nothing came of it within {waited:?}: the device or its driver does not answer")]
    Late { waited: Duration },
    #[error("no libibverbs.so.1: {why}")]
    Library { why: String },
    #[error(
        "{bytes} bytes of memory could not be pinned for RDMA: {why}; the server may need a higher \
         limit of locked memory (ulimit -l)"
    )]
    Locked { bytes: u64, why: String },
    #[error("no RDMA device")]
    NoDevice,
    #[error("{device} has no GID on port {port}: its interface has no address")]
    NoGid { device: String, port: u8 },
    #[error(transparent)]
    OutOfOrder(#[from] OutOfOrder),
    #[error("port {port} of {device} is {state}")]
    PortDown { device: String, port: u8, state: &'static str },
    #[error("{device} has no port {port}")]
    PortUnknown { device: String, port: u8 },
    #[error("queue pair number {number} does not fit the 24 bits that such numbers have")]
    QueuePairNumber { number: u64 },
    #[error("libibverbs has no {call}")]
    TooOld { call: &'static str },
}

impl RdmaError {
    /// What RDMA's own threads did not do in time.
    pub const LATE: RdmaError = RdmaError::Late { waited: RdmaConfig::PROMISE_TIME_MAX };

    /// What to do, for the operator.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            RdmaError::Call { .. } | RdmaError::Late { .. } | RdmaError::OutOfOrder(_) => {
                "rdma resource show and the kernel's log say more"
            }
            RdmaError::DeviceMemory { .. } => {
                "none needed: it is copied by way of the server's own memory; for the card to \
                 reach it both drivers, the card's and the device's, have to know dmabuf (mlx5 \
                 from kernel 5.12 on; NVIDIA's open modules)"
            }
            RdmaError::DeviceUnknown { .. } => "--rdma-device takes a name that rdma link shows",
            RdmaError::GidUnknown { .. } => "--rdma-gid takes an index that show_gids lists",
            RdmaError::Library { .. } => "install libibverbs1 and ibverbs-providers (rdma-core)",
            RdmaError::Locked { .. } => {
                "ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit"
            }
            RdmaError::NoDevice => {
                "none needed: without one, servers reach each other over HTTP; for a network card \
                 without RDMA: rdma link add rxe0 type rxe netdev eth0"
            }
            RdmaError::NoGid { .. } => "ip addr add an address to the port's interface",
            RdmaError::PortDown { .. } => "ip link set the port's interface up",
            RdmaError::PortUnknown { .. } => "--rdma-port takes a number that rdma link shows",
            RdmaError::QueuePairNumber { .. } => "the other server sent it: see what it runs",
            RdmaError::TooOld { .. } => "install rdma-core 34 or later",
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// How a request of a queue pair came out, other than well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkStatus(pub u32);

impl WorkStatus {
    /// The pair was taken out of use before the request was done.
    pub const FLUSHED: WorkStatus = WorkStatus(5);
    /// The peer's memory is not what the request says it is, any more or at all.
    pub const REMOTE_ACCESS: WorkStatus = WorkStatus(10);

    /// The name that the headers give it, and what it means for a write.
    #[must_use]
    pub fn meaning(self) -> (&'static str, &'static str) {
        match self.0 {
            1 => ("LOC_LEN_ERR", "the message is longer than the port takes"),
            2 => ("LOC_QP_OP_ERR", "the queue pair could not carry out the request"),
            4 => ("LOC_PROT_ERR", "the memory to read is not registered any more"),
            5 => ("WR_FLUSH_ERR", "the queue pair was taken out of use before the write was done"),
            7 => ("BAD_RESP_ERR", "the peer sent an answer that makes no sense"),
            8 => ("LOC_ACCESS_ERR", "the memory to read may not be read"),
            9 => (
                "REM_INV_REQ_ERR",
                "the peer could not make sense of the request: both ports need the same MTU",
            ),
            10 => ("REM_ACCESS_ERR", "the peer has no memory with that key, address and size"),
            11 => ("REM_OP_ERR", "the peer could not carry out the request"),
            12 => ("RETRY_EXC_ERR", "the peer does not answer: it is gone, or the network is down"),
            13 => ("RNR_RETRY_EXC_ERR", "the peer was not ready for too long"),
            16 => ("REM_ABORT_ERR", "the peer gave up"),
            19 => ("FATAL_ERR", "the device failed"),
            20 => ("RESP_TIMEOUT_ERR", "the peer's answer did not come in time"),
            21 => ("GENERAL_ERR", "the device failed for a reason that it does not tell"),
            _ => ("an unknown status", "the driver knows more"),
        }
    }
}

impl fmt::Display for WorkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, meaning) = self.meaning();
        write!(f, "{meaning} ({name}, status {})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_key_is_named() {
        let text = WorkStatus(10).to_string();
        let expected = "the peer has no memory with that key, address and size \
                        (REM_ACCESS_ERR, status 10)";
        assert_eq!(text, expected);
    }

    #[test]
    fn locked_memory_has_its_remedy() {
        let error = RdmaError::Locked { bytes: 4096, why: "Cannot allocate memory".to_owned() };
        assert!(error.to_string().starts_with("4096 bytes of memory could not be pinned"));
        assert!(error.remedy().contains("LimitMEMLOCK=infinity"));
    }
}
