//! Networks, as `10.0.0.0/8` and `2001:db8::/32`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Addresses that begin alike. A network of IPv4 addresses that are written as IPv6 ones is one of
/// IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix_bits: u32,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error("{text:?} is no address: write 10.0.0.0/8, 2001:db8::/32 or a single address")]
    Address { text: String },
    #[error("{address} has bits behind its prefix: write {network}")]
    HostBits { address: String, network: Network },
    #[error("{text:?} is no length of a prefix: write a number from 0 to {bits_max}")]
    Prefix { text: String, bits_max: u32 },
}

impl Network {
    /// How many bits its addresses have in common.
    pub(super) fn prefix_bits(self) -> u32 {
        self.prefix_bits
    }

    /// Whether an address, which is not written in another family's way, is one of it.
    pub(super) fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && masked(address, self.prefix_bits) == self.address
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Network, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let refused = || NetworkError::Address { text: address.to_owned() };
        let written: IpAddr = address.parse().map_err(|_| refused())?;
        let bits_max = bits_of(written);
        let bits = match prefix {
            None => bits_max,
            Some(text) => text
                .parse()
                .ok()
                .filter(|bits| *bits <= bits_max && text.bytes().all(|b| b.is_ascii_digit()))
                .ok_or_else(|| NetworkError::Prefix { text: text.to_owned(), bits_max })?,
        };
        // `::ffff:10.0.0.0/104` is `10.0.0.0/8`; a shorter prefix has IPv6 addresses too.
        let canonical = written.to_canonical();
        let (address, prefix_bits) = match bits.checked_sub(bits_max - bits_of(canonical)) {
            Some(bits) => (canonical, bits),
            None => (written, bits),
        };
        let network = Network { address: masked(address, prefix_bits), prefix_bits };
        if network.address != address {
            return Err(NetworkError::HostBits { address: text.to_owned(), network });
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

fn bits_of(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with all but its first bits cleared.
fn masked(address: IpAddr, bits: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_is_written_as_it_is_read() {
        for (text, same) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ] {
            let network: Network = text.parse().unwrap();
            assert_eq!(network.to_string(), same, "{text}");
        }
    }

    #[test]
    fn text_that_is_no_network_is_refused_with_the_remedy() {
        for (text, words) in [
            ("", "is no address"),
            ("lan", "is no address"),
            ("10.0.0/8", "is no address"),
            ("10.0.0.1/8", "write 10.0.0.0/8"),
            ("2001:db8::1/32", "write 2001:db8::/32"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("::/129", "from 0 to 128"),
            ("10.0.0.0/", "from 0 to 32"),
            ("10.0.0.0/+8", "from 0 to 32"),
            ("10.0.0.0/8/8", "from 0 to 32"),
        ] {
            let error = text.parse::<Network>().unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn network_contains_its_addresses_and_no_others() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.1.2.3/32", "10.1.2.3", "10.1.2.2"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "ffff::", "1.2.3.4"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
        ] {
            let network: Network = network.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{network} {outside}");
        }
    }
}
