//! Ports on 127.0.0.1 that nobody else takes, neither now nor while their server restarts.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// Below the ports that the system hands to outgoing connections: such a port could be gone when a killed
/// server comes back, and a client that retries could even connect to itself.
const RANGE: std::ops::Range<u16> = 20_000..32_768;

/// A TCP port that is ours while this lives.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
    /// The UDP port of the same number, bound: how test processes see each other's reservations.
    _claim: UdpSocket,
}

impl Port {
    /// A free port.
    pub(super) fn reserve() -> Self {
        for _ in 0..1000 {
            let number = rand::random_range(RANGE);
            let Ok(claim) = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)) else { continue };
            if TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Port { number, _claim: claim };
            }
        }
        panic!("no free port among 1000 tried in {RANGE:?} on 127.0.0.1")
    }

    /// Its number.
    pub(super) fn number(&self) -> u16 {
        self.number
    }
}
