//! Accepting connections.

use std::rc::Rc;
use std::time::Duration;

use tracing::{debug, warn};

use super::Shard;
use super::connection::serve;
use super::fair::Claim;
use super::io::{Listener, Socket};
use crate::config::ShardLimits;
use crate::http::{self, Status};

/// Pause after an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

impl Shard {
    /// Accepts for as long as the task lives. With `is_tls` connections begin with a handshake.
    pub(super) async fn accept(self: Rc<Self>, mut listener: Listener, is_tls: bool) {
        loop {
            let limits = &self.config.shard;
            match listener.accept(limits.keepalive_idle, limits.send_pause_max).await {
                Ok(mut socket) => {
                    let Some(place) = self.places.take(self.home) else {
                        self.turn_away(socket, is_tls);
                        continue;
                    };
                    let tls = self.access.borrow().tls().filter(|_| is_tls).cloned();
                    if let Some(config) = tls
                        && let Err(error) = socket.begin_tls(config)
                    {
                        warn!(%error, "cannot speak TLS");
                        continue;
                    }
                    let owner = self.next_owner();
                    debug!(?owner, "connected");
                    let claim = Claim::new(self.access.borrow().may_be_several());
                    let task = serve(Rc::clone(&self), socket, owner, place, Rc::clone(&claim));
                    self.reactor.spawn_fair(claim, task).detach();
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    self.reactor.sleep(PAUSE).await;
                }
            }
        }
    }

    /// Tells a connection that there are too many already. Where TLS is spoken, or many are being
    /// told, it is closed without a word.
    fn turn_away(self: &Rc<Self>, mut socket: Socket, is_tls: bool) {
        let limit = self.config.shard.connections_max;
        warn!(limit, "too many connections");
        let turned_away = self.turned_away.get();
        if is_tls || turned_away >= ShardLimits::TURNED_AWAY_MAX {
            return;
        }
        self.turned_away.set(turned_away + 1);
        let words = format!(
            "too many connections: this core serves at most {limit} at once; try again later, or \
             start the server with a higher --connection-limit\n"
        );
        let mut http = http::Connection::new(self.config.http);
        http.stop();
        let mut reply = Vec::new();
        http.respond(Status::ServiceUnavailable, words.len() as u64, &mut reply);
        reply.extend_from_slice(words.as_bytes());
        socket.cork(reply);
        let shard = Rc::clone(self);
        let telling = async move {
            socket.close().await;
            shard.turned_away.set(shard.turned_away.get() - 1);
        };
        self.reactor.spawn(telling).detach();
    }
}
