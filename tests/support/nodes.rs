//! A server in this process whose two shards are next to different memory: device 0 is next to the
//! first shard's, device 1 to the second's. Which shard opened what is written down.

#![expect(clippy::unwrap_used, reason = "a test ends where its server does not start")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use outboard::compile;
use outboard::config::ShardLimits;
use outboard::device::null::NullPlatform;
use outboard::device::shared::Budget;
use outboard::device::{Device, DeviceError, Platform, Quota, Renderer};
use outboard::identity::Access;
use outboard::shard::{Config, PlatformMaker, Server};

/// The devices that were opened, and the shards that opened them.
type Log = Arc<Mutex<Vec<(u64, String)>>>;

struct Written {
    platform: NullPlatform,
    log: Log,
}

impl Platform for Written {
    fn name(&self) -> &'static str {
        self.platform.name()
    }

    fn device_count(&self) -> u64 {
        self.platform.device_count()
    }

    fn renderer(&self, index: u64) -> Renderer {
        self.platform.renderer(index)
    }

    fn numa_node(&self, index: u64) -> Option<usize> {
        self.platform.numa_node(index)
    }

    fn open_within(&mut self, index: u64, quota: &Quota) -> Result<Box<dyn Device>, DeviceError> {
        // The executor adds a number of its own.
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        let shard = thread.rsplit_once('-').unwrap_or_default().0.to_owned();
        self.log.lock().unwrap().push((index, shard));
        self.platform.open_within(index, quota)
    }

    fn compile(&mut self, asker: compile::Asker, index: u64, source: Arc<[u8]>) -> compile::Ticket {
        self.platform.compile(asker, index, source)
    }
}

pub(crate) struct TwoNodes {
    server: Server,
    log: Log,
    budget: Arc<Budget>,
}

impl TwoNodes {
    pub(crate) fn start(access: Access) -> TwoNodes {
        TwoNodes::with_limit(access, ShardLimits::default().connections_max)
    }

    /// The same, where each shard serves so many connections.
    pub(crate) fn with_limit(access: Access, connections_max: usize) -> TwoNodes {
        let (budget, log) = (Arc::new(Budget::new(1 << 30)), Log::default());
        let platform: PlatformMaker = {
            let (budget, log) = (Arc::clone(&budget), Arc::clone(&log));
            Arc::new(move || {
                let platform = NullPlatform::new(2, Arc::clone(&budget));
                let platform = platform.with_nodes(&[Some(0), Some(1)]);
                Box::new(Written { platform, log: Arc::clone(&log) })
            })
        };
        let staging = Config::new(Arc::new(Budget::new(1 << 30)));
        let nodes = vec![Some(0), Some(1)];
        let shard = ShardLimits { connections_max, ..staging.shard };
        let config = Config { access: Arc::new(access), nodes, shard, ..staging };
        let cores = outboard::cores::allowed().unwrap();
        let cores = [*cores.first().unwrap(), *cores.last().unwrap()];
        let address = "127.0.0.1:0".parse().unwrap();
        let server = Server::start(&[address], &cores, &config, &platform).unwrap();
        TwoNodes { server, log, budget }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    /// Devices that were opened since the last call, with the shards that opened them.
    pub(crate) fn opened(&self) -> Vec<(u64, String)> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    /// Drains the server, which must leave nothing.
    pub(crate) fn finish(self) {
        self.server.drain().begin();
        self.server.join();
        assert_eq!(self.budget.used(), 0);
    }
}
