//! What the shards know together of one identity.
//!
//! Owns: [`Tenant`], the accounts of one identity: connections, compilations, device memory, memory
//! of bodies; [`Seat`] and [`Turn`], the right to one of its connections and compilations. Absent:
//! sessions, which are counted where their names are (`session`); who an identity is (`identity`).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::device::Quota;
use crate::device::shared::Budget;
use crate::identity::Identity;

/// The accounts of one identity. Kept by whatever counts in them.
#[derive(Debug)]
pub struct Tenant {
    connections: AtomicUsize,
    compilations: AtomicUsize,
    memory: Arc<Budget>,
    /// As long as a body or its memory is there.
    bodies: Mutex<Weak<Budget>>,
}

impl Tenant {
    pub(super) fn new(memory_bytes_max: u64) -> Tenant {
        let memory = Arc::new(Budget::of_identity(memory_bytes_max));
        let (connections, compilations) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Tenant { connections, compilations, memory, bodies: Mutex::default() }
    }

    /// One connection more, if `limit` allows.
    #[must_use]
    pub fn seat(self: &Arc<Self>, identity: Identity, limit: usize) -> Option<Seat> {
        let add = |seats: usize| (seats < limit).then_some(seats + 1);
        self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Seat { identity, tenant: Arc::clone(self) })
    }

    /// One compilation more, if `limit` allows.
    pub(super) fn compilation(self: &Arc<Self>, limit: usize) -> Option<Turn> {
        let add = |turns: usize| (turns < limit).then_some(turns + 1);
        self.compilations.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Turn(Arc::clone(self)))
    }

    /// What bodies of this identity may have of `staging`. See [`Budget::of_bodies`].
    #[must_use]
    pub fn bodies(&self, staging: &Arc<Budget>, leaves_room: bool) -> Arc<Budget> {
        let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        bodies.upgrade().unwrap_or_else(|| {
            let made = Arc::new(Budget::of_bodies(staging, &self.memory, leaves_room));
            *bodies = Arc::downgrade(&made);
            made
        })
    }

    /// What one session may have.
    pub(super) fn quota(&self, session_bytes_max: u64) -> Quota {
        Quota::new(session_bytes_max, Arc::clone(&self.memory))
    }

    /// Whether nothing counts in its memory, nor will.
    pub(super) fn is_idle(&self) -> bool {
        Arc::strong_count(&self.memory) == 1
    }
}

/// A connection of an identity's, among those that it may have. Given up when dropped.
#[derive(Debug)]
pub struct Seat {
    identity: Identity,
    tenant: Arc<Tenant>,
}

impl Seat {
    /// Whose it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The accounts of whose it is.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.tenant.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One of the compilations that an identity may have under way. Given up when dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<Tenant>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.compilations.fetch_sub(1, Ordering::Relaxed);
    }
}
