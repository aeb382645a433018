//! Accepting connections.

use std::rc::Rc;
use std::time::Duration;

use tracing::{debug, warn};

use super::Shard;
use super::connection::serve;
use super::io::Listener;

/// Pause after an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

impl Shard {
    /// Accepts for as long as the task lives. With `is_tls` connections begin with a handshake.
    pub(super) async fn accept(self: Rc<Self>, mut listener: Listener, is_tls: bool) {
        loop {
            match listener.accept(self.config.shard.keepalive_idle).await {
                Ok(_) if self.connections.borrow().len() >= self.config.shard.connections_max => {
                    warn!(limit = self.config.shard.connections_max, "too many connections");
                }
                Ok(mut socket) => {
                    let tls = self.access.borrow().tls().filter(|_| is_tls).cloned();
                    if let Some(config) = tls
                        && let Err(error) = socket.begin_tls(config)
                    {
                        warn!(%error, "cannot speak TLS");
                        continue;
                    }
                    let owner = self.next_owner();
                    debug!(?owner, "connected");
                    self.reactor.spawn(serve(Rc::clone(&self), socket, owner)).detach();
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    self.reactor.sleep(PAUSE).await;
                }
            }
        }
    }
}
