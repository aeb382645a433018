//! Which device, port and address (GID) of this machine to use.
//!
//! Both ends have to speak the same way: RoCE v2, which is UDP, where there is Ethernet. Of its
//! addresses those that stand for an IPv4 address come first: they are routed as that is, and stay
//! the same when the interface goes down and up. RoCE v1 does not talk to v2, so it comes last.
//!
//! Absent: asking the machine (`verbs`).
#![forbid(unsafe_code)]

use std::fmt;
use std::net::Ipv6Addr;

use super::RdmaError;
use crate::config::RdmaConfig;

/// How packets to an address look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidKind {
    InfiniBand,
    RoceV1,
    RoceV2,
}

/// An address of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gid {
    pub index: u8,
    pub raw: [u8; 16],
    pub kind: GidKind,
}

/// Path MTUs that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(u32);

impl Mtu {
    /// By the number that the headers give it.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Mtu> {
        (1..=5).contains(&code).then_some(Mtu(code))
    }

    #[must_use]
    pub fn code(self) -> u32 {
        self.0
    }

    #[must_use]
    pub fn bytes(self) -> u32 {
        128 << self.0
    }
}

/// A port of a device.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) number: u8,
    /// What is wrong with it, where it is not active.
    pub(super) down: Option<&'static str>,
    pub(super) mtu: Mtu,
    pub(super) message_bytes_max: u32,
    pub(super) gids: Vec<Gid>,
}

/// A device of this machine.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) ports: Vec<Port>,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub device: String,
    pub port: u8,
    pub gid: Gid,
    pub mtu: Mtu,
    pub message_bytes_max: u32,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Ipv6Addr::from(self.gid.raw);
        let (device, port, index) = (&self.device, self.port, self.gid.index);
        write!(f, "{device} port {port}, GID {index} ({address}), MTU {}", self.mtu.bytes())
    }
}

/// Smaller is better.
fn rank(gid: &Gid) -> u8 {
    let address = Ipv6Addr::from(gid.raw);
    match gid.kind {
        GidKind::RoceV2 if address.to_ipv4_mapped().is_some() => 0,
        GidKind::RoceV2 if !address.is_unicast_link_local() => 1,
        GidKind::InfiniBand => 2,
        GidKind::RoceV2 => 3,
        GidKind::RoceV1 => 4,
    }
}

/// The best address of an active port, of those that the configuration leaves.
///
/// # Errors
///
/// Why there is none: the reason of the first device that comes into question.
pub(super) fn choose(candidates: &[Candidate], config: &RdmaConfig) -> Result<Chosen, RdmaError> {
    let wanted =
        |candidate: &&Candidate| config.device.as_ref().is_none_or(|name| *name == candidate.name);
    let mut first_reason = None;
    let mut best: Option<Chosen> = None;
    for candidate in candidates.iter().filter(wanted) {
        match choose_of(candidate, config) {
            Ok(chosen) if best.as_ref().is_none_or(|best| rank(&chosen.gid) < rank(&best.gid)) => {
                best = Some(chosen);
            }
            Ok(_) => {}
            Err(reason) => first_reason = first_reason.or(Some(reason)),
        }
    }
    match (best, first_reason, &config.device) {
        (Some(chosen), ..) => Ok(chosen),
        (None, Some(reason), _) => Err(reason),
        (None, None, Some(name)) => Err(RdmaError::DeviceUnknown {
            name: name.clone(),
            known: candidates.iter().map(|candidate| candidate.name.clone()).collect(),
        }),
        (None, None, None) => Err(RdmaError::NoDevice),
    }
}

fn choose_of(candidate: &Candidate, config: &RdmaConfig) -> Result<Chosen, RdmaError> {
    let device = || candidate.name.clone();
    let mut reason = None;
    let mut best: Option<(&Port, &Gid)> = None;
    let wanted = |port: &&Port| config.port.is_none_or(|number| number == port.number);
    for port in candidate.ports.iter().filter(wanted) {
        let number = port.number;
        if let Some(state) = port.down {
            reason = reason.or(Some(RdmaError::PortDown { device: device(), port: number, state }));
            continue;
        }
        let gids = port.gids.iter().filter(|gid| config.gid.is_none_or(|index| index == gid.index));
        match gids.min_by_key(|gid| rank(gid)) {
            Some(gid) if best.is_none_or(|(_, best)| rank(gid) < rank(best)) => {
                best = Some((port, gid));
            }
            Some(_) => {}
            None => {
                let missing = match config.gid {
                    Some(index) => RdmaError::GidUnknown { device: device(), port: number, index },
                    None => RdmaError::NoGid { device: device(), port: number },
                };
                reason = reason.or(Some(missing));
            }
        }
    }
    let Some((port, gid)) = best else {
        let port = config.port.unwrap_or(1);
        return Err(reason.unwrap_or(RdmaError::PortUnknown { device: device(), port }));
    };
    Ok(Chosen {
        device: device(),
        port: port.number,
        gid: *gid,
        mtu: port.mtu,
        message_bytes_max: port.message_bytes_max,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK_LOCAL: &str = "fe80::1";
    const V4: &str = "::ffff:10.0.0.1";

    fn gid(index: u8, address: &str, kind: GidKind) -> Gid {
        let address: Ipv6Addr = address.parse().expect("an address");
        Gid { index, raw: address.octets(), kind }
    }

    fn port(number: u8, gids: &[Gid]) -> Port {
        let mtu = Mtu::from_code(5).expect("it exists");
        Port { number, down: None, mtu, message_bytes_max: 1 << 30, gids: gids.to_vec() }
    }

    fn device(name: &str, ports: Vec<Port>) -> Candidate {
        Candidate { name: name.to_owned(), ports }
    }

    /// As a RoCE card has them: each address in both versions.
    fn roce() -> Vec<Gid> {
        vec![
            gid(0, LINK_LOCAL, GidKind::RoceV1),
            gid(1, LINK_LOCAL, GidKind::RoceV2),
            gid(2, V4, GidKind::RoceV1),
            gid(3, V4, GidKind::RoceV2),
        ]
    }

    #[test]
    fn address_that_stands_for_ipv4_in_version_2_is_chosen() {
        let devices = [device("mlx5_0", vec![port(1, &roce())])];
        let chosen = choose(&devices, &RdmaConfig::default()).unwrap();
        assert_eq!((chosen.port, chosen.gid.index), (1, 3));
        assert_eq!(chosen.to_string(), "mlx5_0 port 1, GID 3 (::ffff:10.0.0.1), MTU 4096");
    }

    #[test]
    fn best_address_of_all_active_ports_and_devices_is_chosen() {
        let only_local = device("a", vec![port(1, &roce()[..2])]);
        let mut down = port(1, &roce());
        down.down = Some("down");
        let devices = [only_local, device("b", vec![down, port(2, &roce())])];
        let chosen = choose(&devices, &RdmaConfig::default()).unwrap();
        assert_eq!((chosen.device.as_str(), chosen.port, chosen.gid.index), ("b", 2, 3));
    }

    #[test]
    fn configuration_decides_where_it_says_something() {
        let devices = [
            device("a", vec![port(1, &roce())]),
            device("b", vec![port(1, &roce()), port(2, &roce())]),
        ];
        let name = Some("b".to_owned());
        let config = RdmaConfig { device: name, port: Some(2), gid: Some(0) };
        let chosen = choose(&devices, &config).unwrap();
        assert_eq!((chosen.device.as_str(), chosen.port, chosen.gid.index), ("b", 2, 0));
    }

    #[test]
    fn reason_is_precise_where_nothing_fits() {
        let reason = |devices: &[Candidate], config: &RdmaConfig| {
            choose(devices, config).unwrap_err().to_string()
        };
        let config = RdmaConfig::default();
        assert_eq!(reason(&[], &config), "no RDMA device");
        let mut down = port(1, &roce());
        down.down = Some("down");
        assert_eq!(reason(&[device("a", vec![down])], &config), "port 1 of a is down");
        let bare = [device("a", vec![port(1, &[])])];
        assert!(reason(&bare, &config).starts_with("a has no GID on port 1"));
        let devices = [device("a", vec![port(1, &roce())])];
        let config = RdmaConfig { device: Some("x".to_owned()), ..RdmaConfig::default() };
        assert_eq!(reason(&devices, &config), "no RDMA device x: there is a");
        let config = RdmaConfig { port: Some(3), ..RdmaConfig::default() };
        assert_eq!(reason(&devices, &config), "a has no port 3");
        let config = RdmaConfig { gid: Some(9), ..RdmaConfig::default() };
        assert_eq!(reason(&devices, &config), "a has no GID 9 on port 1");
    }
}
