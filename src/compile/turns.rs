//! Whose job is next: everybody who waits has a turn, however many jobs somebody else has.
//!
//! Owns: the order of what waits, and who may have a compiler while all are busy. Clients have
//! their turns one after the other, and so have the connections of one client among themselves.
//!
//! Absent: jobs, threads and locks (`pool`).

use std::collections::VecDeque;

/// For whom something is compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// Who the client is, as a number.
    pub client: u128,
    /// The shard of the connection.
    pub shard: usize,
    /// Which of that shard's connections.
    pub connection: u64,
}

/// What waits, in turns.
#[derive(Debug)]
pub(super) struct Turns<T> {
    /// Clients that have something waiting; the next to have a turn is in front.
    clients: VecDeque<Client<T>>,
}

#[derive(Debug)]
struct Client<T> {
    client: u128,
    waiting: usize,
    connections: VecDeque<Connection<T>>,
}

#[derive(Debug)]
struct Connection<T> {
    asker: Asker,
    waiting: VecDeque<T>,
}

impl<T> Turns<T> {
    pub(super) fn new() -> Turns<T> {
        Turns { clients: VecDeque::new() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.clients.iter().map(|client| client.waiting).sum()
    }

    /// How many a client has.
    pub(super) fn len_of(&self, client: u128) -> usize {
        self.clients.iter().find(|known| known.client == client).map_or(0, |known| known.waiting)
    }

    /// Whether such a one waits for this asker.
    pub(super) fn has(&self, asker: Asker, is_it: impl Fn(&T) -> bool) -> bool {
        let connections = self.clients.iter().flat_map(|client| &client.connections);
        connections.filter(|known| known.asker == asker).any(|c| c.waiting.iter().any(&is_it))
    }

    pub(super) fn push(&mut self, asker: Asker, value: T) {
        let client = match self.clients.iter().position(|known| known.client == asker.client) {
            Some(at) => &mut self.clients[at],
            None => {
                let connections = VecDeque::new();
                let client = Client { client: asker.client, waiting: 0, connections };
                self.clients.push_back(client);
                self.clients.back_mut().expect("just added")
            }
        };
        client.waiting += 1;
        match client.connections.iter_mut().find(|known| known.asker == asker) {
            Some(connection) => connection.waiting.push_back(value),
            None => client.connections.push_back(Connection { asker, waiting: [value].into() }),
        }
    }

    /// The next one whose asker `may` have it.
    pub(super) fn pop(&mut self, may: impl Fn(Asker) -> bool) -> Option<(Asker, T)> {
        let eligible = |client: &Client<T>| client.connections.iter().position(|c| may(c.asker));
        let turns = self.clients.iter().map(eligible).enumerate();
        let (at, connection_at) = turns.filter_map(|(at, found)| Some((at, found?))).next()?;
        let mut client = self.clients.remove(at)?;
        let mut connection = client.connections.remove(connection_at)?;
        let value = connection.waiting.pop_front()?;
        let asker = connection.asker;
        client.waiting -= 1;
        if !connection.waiting.is_empty() {
            client.connections.push_back(connection);
        }
        if !client.connections.is_empty() {
            self.clients.push_back(client);
        }
        Some((asker, value))
    }

    /// Drops what `keep` does not want.
    pub(super) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.clients.retain_mut(|client| {
            client.connections.retain_mut(|connection| {
                connection.waiting.retain(&keep);
                !connection.waiting.is_empty()
            });
            client.waiting = client.connections.iter().map(|c| c.waiting.len()).sum();
            client.waiting > 0
        });
    }

    /// Takes all.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        let clients = std::mem::take(&mut self.clients);
        let connections = clients.into_iter().flat_map(|client| client.connections);
        connections.flat_map(|connection| connection.waiting)
    }
}

/// For whom compilers run.
///
/// There are as many as the machine has cores, for whoever comes. Where they all are busy, perhaps
/// for a minute, a connection that has none gets one besides, and after as many of those a client
/// that has none: they share the cores with the others meanwhile.
#[derive(Debug)]
pub(super) struct Running {
    askers: Vec<Asker>,
    threads: usize,
}

impl Running {
    /// `threads` for whoever comes.
    pub(super) fn new(threads: usize) -> Running {
        Running { askers: Vec::new(), threads: threads.max(1) }
    }

    /// The most that there can be at once.
    pub(super) fn most(&self) -> usize {
        self.threads * 3
    }

    pub(super) fn may_have(&self, asker: Asker) -> bool {
        let running = self.askers.len();
        let has_none = |is_its: fn(&Asker, &Asker) -> bool| {
            !self.askers.iter().any(|known| is_its(known, &asker))
        };
        running < self.threads
            || running < self.threads * 2 && has_none(|known, asker| known == asker)
            || running < self.most() && has_none(|known, asker| known.client == asker.client)
    }

    pub(super) fn begin(&mut self, asker: Asker) {
        self.askers.push(asker);
    }

    pub(super) fn end(&mut self, asker: Asker) {
        if let Some(at) = self.askers.iter().position(|known| *known == asker) {
            self.askers.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(client: u128, connection: u64) -> Asker {
        Asker { client, shard: 0, connection }
    }

    #[test]
    fn jobs_are_taken_from_clients_and_their_connections_in_turn() {
        let mut turns = Turns::new();
        for job in 0..4 {
            turns.push(asker(1, 1), format!("flood {job}"));
        }
        turns.push(asker(1, 2), "same client".to_owned());
        for job in 0..2 {
            turns.push(asker(2, 1), format!("other {job}"));
        }
        assert_eq!((turns.len(), turns.len_of(1), turns.len_of(3)), (7, 5, 0));
        let order: Vec<_> =
            std::iter::from_fn(|| turns.pop(|_| true)).map(|(_, job)| job).collect();
        let expected =
            ["flood 0", "other 0", "same client", "other 1", "flood 1", "flood 2", "flood 3"];
        assert_eq!(order, expected);
        assert_eq!(turns.len(), 0);
    }

    #[test]
    fn turn_of_somebody_who_may_not_goes_to_the_next_who_may() {
        let mut turns = Turns::new();
        turns.push(asker(1, 1), 1);
        turns.push(asker(1, 2), 2);
        assert_eq!(turns.pop(|asker| asker.connection == 2), Some((asker(1, 2), 2)));
        assert_eq!(turns.pop(|asker| asker.connection == 2), None);
        turns.retain(|_| false);
        assert_eq!((turns.len(), turns.pop(|_| true)), (0, None));
    }

    #[test]
    fn busy_compilers_leave_room_for_those_who_have_none() {
        let mut running = Running::new(2);
        let flood = asker(1, 1);
        for _ in 0..2 {
            assert!(running.may_have(flood));
            running.begin(flood);
        }
        assert!(!running.may_have(flood));
        for connection in 2..4 {
            assert!(running.may_have(asker(1, connection)));
            running.begin(asker(1, connection));
        }
        assert!(!running.may_have(asker(1, 4)), "a client's connections have their limit");
        assert!(running.may_have(asker(2, 1)), "another client has none");
        for client in 2..4 {
            running.begin(asker(client, 1));
        }
        assert!(!running.may_have(asker(4, 1)));
        running.end(asker(2, 1));
        assert!(running.may_have(asker(4, 1)));
    }
}
