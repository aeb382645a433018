//! RDMA between servers: a network card reads one server's memory and writes another's.
//!
//! Owns: queue pairs of reliable connections and what is under way in them, registrations of
//! memory, the choice of a device, and the few bytes by which two servers tell each other about
//! queue pairs and memory. Both are what the reference server sends and expects, so it can be the
//! other end.
//!
//! Absent: commands, sessions, sockets. Nothing here blocks for as long as a peer takes:
//! completions are told by a descriptor that the caller waits for.
//!
//! A peer that has the key of a registration reads and writes that memory without any code of this
//! process. So a registration covers the bytes of one buffer and no more, lies at an address that
//! nobody can guess, and belongs to a [`Domain`], outside of which its key means nothing.
//!
//! Reading order: `state` and `schedule` (what may happen when, as values), `choice` (which
//! device), `error`, then what calls libibverbs: `verbs` (the library, devices, domains,
//! registrations), `pair` (queue pairs and completions), `link` (transfers to one peer); `promise`
//! (what would hold up a shard), `fabric` (what the engine sees of it).

mod choice;
mod error;
mod fabric;
mod link;
mod pair;
mod promise;
mod schedule;
mod state;
mod verbs;

pub use choice::{Chosen, Gid, GidKind, Mtu};
pub use error::{RdmaError, WorkStatus};
pub use fabric::{Accepted, DeviceFabric, Fabric, NullFabric, Reach, Registered};
pub use link::{Link, Turn};
pub use pair::QueuePair;
pub use promise::{Awaited, Promise};
pub use schedule::{Finished, TransferId, Write};
pub use state::{Change, OutOfOrder, QueueState};
pub use verbs::{Device, Domain, HostMemory, Registration};

/// Where a queue pair is: what `IBConnect` sends and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub gid: [u8; 16],
    pub queue_pair: QueuePairNumber,
}

/// A queue pair's number, which has 24 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePairNumber(u32);

impl QueuePairNumber {
    /// # Errors
    ///
    /// [`RdmaError::QueuePairNumber`] for more than 24 bits.
    pub fn new(number: u64) -> Result<QueuePairNumber, RdmaError> {
        match u32::try_from(number) {
            Ok(number) if number < 1 << 24 => Ok(QueuePairNumber(number)),
            _ => Err(RdmaError::QueuePairNumber { number }),
        }
    }
}

impl From<QueuePairNumber> for u64 {
    fn from(number: QueuePairNumber) -> u64 {
        u64::from(number.0)
    }
}

impl Address {
    pub const BYTES: usize = 24;

    /// The answer to `IBConnect`.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.gid);
        bytes[16..].copy_from_slice(&u64::from(self.queue_pair.0).to_le_bytes());
        bytes
    }

    /// # Errors
    ///
    /// [`RdmaError::QueuePairNumber`] where there is no such number.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Result<Address, RdmaError> {
        let (gid, number) = bytes.split_at(16);
        let gid = gid.try_into().expect("16 bytes");
        let number = u64::from_le_bytes(number.try_into().expect("8 bytes"));
        Ok(Address { gid, queue_pair: QueuePairNumber::new(number)? })
    }
}

/// Memory that a peer may write: what `BufferIOVAS` answers for each buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where the registration is, for the device.
    pub iova: u64,
    pub key: u32,
    pub bytes: u64,
}

impl Target {
    pub const BYTES: usize = 24;

    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let numbers = [self.iova, u64::from(self.key), self.bytes];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// `None` for a key of more than 32 bits, or bytes that do not fit behind the address.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Target> {
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let (iova, key, bytes) = (number(0), u32::try_from(number(8)).ok()?, number(16));
        iova.checked_add(bytes)?;
        Some(Target { iova, key, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_spelled_as_the_reference_does() {
        let address =
            Address { gid: *b"0123456789abcdef", queue_pair: QueuePairNumber::new(0x11).unwrap() };
        let bytes = address.to_bytes();
        assert_eq!(&bytes, b"0123456789abcdef\x11\0\0\0\0\0\0\0");
        assert_eq!(Address::from_bytes(&bytes), Ok(address));
    }

    #[test]
    fn queue_pair_number_beyond_24_bits_is_refused() {
        let mut bytes = [0; Address::BYTES];
        bytes[19] = 1;
        let error = Address::from_bytes(&bytes).unwrap_err();
        assert_eq!(error, RdmaError::QueuePairNumber { number: 1 << 24 });
        assert!(QueuePairNumber::new(u64::MAX).is_err());
    }

    #[test]
    fn target_is_three_numbers() {
        let target = Target { iova: 0x1000, key: 7, bytes: 4 };
        let bytes = target.to_bytes();
        assert_eq!(bytes[8..10], [7, 0]);
        assert_eq!(Target::from_bytes(&bytes), Some(target));
    }

    #[test]
    fn target_that_cannot_be_is_refused() {
        let numbers = |numbers: [u64; 3]| {
            let bytes: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
            Target::from_bytes(&bytes.try_into().unwrap())
        };
        assert_eq!(numbers([0, 1 << 32, 4]), None);
        assert_eq!(numbers([u64::MAX, 1, 4]), None);
        assert!(numbers([u64::MAX - 4, 1, 4]).is_some());
    }
}
