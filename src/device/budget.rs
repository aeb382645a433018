//! How much memory the whole server hands out, and how much of it to whom.
//!
//! Owns: [`Budget`], the account of one kind of memory, shared by all shards; [`Quota`], what of it
//! one session may have, and its identity; `Charge`, what one piece of memory has taken. Absent:
//! the memory itself (`segment`, `shared`), who has which quota.
//!
//! Budgets form a small graph: what is taken of a session's is taken of its identity's and of the
//! device's too, or of none of them.
//!
//! Memory that is kept warm for later use is counted beside what is in use: it never makes an
//! allocation fail, and is to be let go where the two together pass the limit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::DeviceError;

/// Whose memory a budget is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// That of all clients.
    All,
    /// That of all bodies of one identity that are arriving.
    Bodies,
    /// That of all sessions of one identity.
    Identity,
    /// That of one session.
    Session,
}

/// How much memory all heaps together may hand out, or those of one client.
#[derive(Debug)]
pub struct Budget {
    whose: Whose,
    limit: u64,
    used: AtomicU64,
    /// Beside `used`.
    kept: AtomicU64,
    reserve: Option<Arc<Budget>>,
    /// What is taken here is taken of these too. What is kept is theirs alone.
    above: Vec<Arc<Budget>>,
    /// Whether as much has to be free above as is used here, for others.
    leaves_room: bool,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Budget {
        Budget::part(Whose::All, limit, Vec::new())
    }

    /// What all sessions of one identity may have of all devices.
    #[must_use]
    pub fn of_identity(limit: u64) -> Budget {
        Budget::part(Whose::Identity, limit, Vec::new())
    }

    /// What bodies of one identity may have of `staging` while they arrive. Where they draw on its
    /// reserve, the identity's `memory` pays as well. With `leaves_room`, never more than what
    /// stays free: one identity has half at most, and whoever comes finds half of what is left.
    #[must_use]
    pub fn of_bodies(staging: &Arc<Budget>, memory: &Arc<Budget>, leaves_room: bool) -> Budget {
        let reserve = staging.reserve.as_ref().map(|buffers| {
            let above = vec![Arc::clone(memory), Arc::clone(buffers)];
            Arc::new(Budget::part(Whose::Identity, u64::MAX, above))
        });
        let limit = if leaves_room { staging.limit / 2 } else { staging.limit };
        let part = Budget::part(Whose::Bodies, limit, vec![Arc::clone(staging)]);
        Budget { reserve, leaves_room, ..part }
    }

    fn part(whose: Whose, limit: u64, above: Vec<Arc<Budget>>) -> Budget {
        let (used, kept) = (AtomicU64::new(0), AtomicU64::new(0));
        Budget { whose, limit, used, kept, reserve: None, above, leaves_room: false }
    }

    /// A budget of `limit` bytes for what arrives. What is to become a buffer may draw on
    /// `buffers`, the budget that it will belong to, where this one has no room.
    #[must_use]
    pub fn of_staging(limit: u64, buffers: Arc<Budget>) -> Budget {
        Budget { reserve: Some(buffers), ..Budget::new(limit) }
    }

    /// Bytes handed out and not yet given back.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that nobody uses and that are kept warm.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.root().kept.load(Ordering::Relaxed)
    }

    /// The most that anybody can ever have; with `draws`, from the reserve too.
    #[must_use]
    pub fn reach(&self, draws: bool) -> u64 {
        let more = self.reserve.as_ref().filter(|_| draws).map_or(0, |reserve| reserve.ceiling());
        self.ceiling().saturating_add(more)
    }

    /// The least of the limits that hold here.
    fn ceiling(&self) -> u64 {
        self.above.iter().fold(self.limit, |least, above| least.min(above.ceiling()))
    }

    /// That of all clients.
    fn root(&self) -> &Budget {
        self.above.first().map_or(self, |above| above.root())
    }

    /// Whether two sessions' budgets are of one identity, or of none.
    pub(super) fn is_of_same_identity(&self, other: &Budget) -> bool {
        // See `Quota::of`.
        let identity = |budget: &Budget| budget.above.get(1).map(Arc::as_ptr);
        identity(self) == identity(other)
    }

    pub(super) fn refusal(&self, asked: u64) -> DeviceError {
        let (whose, used, limit) = (self.whose, self.used(), self.limit_now());
        match whose {
            Whose::All => {
                DeviceError::OutOfMemory { asked, free: limit.saturating_sub(used), limit }
            }
            _ => DeviceError::OverQuota { whose, asked, used, limit },
        }
    }

    /// What may be used here at this moment, if nobody else takes any.
    fn limit_now(&self) -> u64 {
        if !self.leaves_room {
            return self.limit;
        }
        let root = self.root();
        let left_by_others = root.limit.saturating_sub(root.used()).saturating_add(self.used());
        self.limit.min(left_by_others / 2)
    }

    /// Whether what is kept stands in the way.
    pub(super) fn is_short(&self) -> bool {
        let root = self.root();
        root.used().saturating_add(root.kept()) > root.limit
    }

    /// Counts bytes as kept, if they are nobody's loss.
    pub(super) fn keep(&self, bytes: u64) -> bool {
        self.root().kept.fetch_add(bytes, Ordering::Relaxed);
        let fits = !self.is_short();
        if !fits {
            self.unkeep(bytes);
        }
        fits
    }

    pub(super) fn unkeep(&self, bytes: u64) {
        self.root().kept.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn take(&self, bytes: u64) -> Result<(), DeviceError> {
        let limit = self.limit_now();
        let add = |used: u64| used.checked_add(bytes).filter(|total| *total <= limit);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        taken.map_err(|_| self.refusal(bytes))?;
        for (index, above) in self.above.iter().enumerate() {
            if let Err(error) = above.take(bytes) {
                self.above[..index].iter().for_each(|taken| taken.give(bytes));
                self.used.fetch_sub(bytes, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    }

    fn give(&self, bytes: u64) {
        self.above.iter().for_each(|above| above.give(bytes));
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// How much of a device's memory one session may have.
#[derive(Clone, Debug)]
pub struct Quota {
    session_bytes_max: u64,
    /// What all sessions of its identity have together.
    identity: Option<Arc<Budget>>,
}

impl Quota {
    /// All that there is.
    pub const NONE: Quota = Quota { session_bytes_max: u64::MAX, identity: None };

    /// At most `session_bytes_max` bytes, and what `identity` has left.
    #[must_use]
    pub fn new(session_bytes_max: u64, identity: Arc<Budget>) -> Quota {
        Quota { session_bytes_max, identity: Some(identity) }
    }

    /// The budget of one session, whose memory comes from `whole`.
    pub(super) fn of(&self, whole: &Arc<Budget>) -> Arc<Budget> {
        // The first is the root.
        let above = std::iter::once(whole).chain(&self.identity).map(Arc::clone).collect();
        Arc::new(Budget::part(Whose::Session, self.session_bytes_max, above))
    }
}

/// Bytes taken from a budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
    /// Of the budget's reserve.
    drawn: u64,
}

impl Charge {
    /// Nothing yet.
    pub(super) fn none(budget: &Arc<Budget>) -> Charge {
        Charge { budget: Arc::clone(budget), bytes: 0, drawn: 0 }
    }

    pub(super) fn new(budget: &Arc<Budget>, bytes: u64) -> Result<Charge, DeviceError> {
        budget.take(bytes)?;
        Ok(Charge { budget: Arc::clone(budget), bytes, drawn: 0 })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes + self.drawn
    }

    /// Raises the charge to `bytes`. With `draws`, what the budget cannot hold comes from its
    /// reserve.
    pub(super) fn raise(&mut self, bytes: u64, draws: bool) -> Result<(), DeviceError> {
        let more = bytes.saturating_sub(self.bytes());
        match self.budget.take(more) {
            Ok(()) => self.bytes += more,
            Err(error) => {
                let reserve = self.budget.reserve.as_ref().filter(|_| draws).ok_or(error)?;
                reserve.take(more)?;
                self.drawn += more;
            }
        }
        Ok(())
    }

    /// Lowers the charge to `bytes`.
    pub(super) fn lower(&mut self, bytes: u64) {
        let drawn = self.drawn.min(self.bytes().saturating_sub(bytes));
        if let Some(reserve) = &self.budget.reserve {
            reserve.give(drawn);
        }
        self.drawn -= drawn;
        let rest = self.bytes.saturating_sub(bytes);
        self.budget.give(rest);
        self.bytes -= rest;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.lower(0);
    }
}

/// What one worker process has of a budget. It is closed at the end of the process, until which it
/// may have memory that nobody else can get.
#[derive(Debug)]
pub(super) struct Account {
    budget: Arc<Budget>,
    /// [`CLOSED`] at the end.
    bytes: AtomicU64,
    /// Memory that it has together with other processes.
    shared: Mutex<Vec<Arc<Charge>>>,
}

const CLOSED: u64 = u64::MAX;

impl Account {
    /// An account that begins with `bytes`.
    pub(super) fn open(budget: &Arc<Budget>, bytes: u64) -> Result<Arc<Account>, DeviceError> {
        budget.take(bytes)?;
        let (budget, bytes) = (Arc::clone(budget), AtomicU64::new(bytes));
        Ok(Arc::new(Account { budget, bytes, shared: Mutex::default() }))
    }

    pub(super) fn take(&self, bytes: u64) -> Result<(), DeviceError> {
        self.budget.take(bytes)?;
        if !self.change(|used| used.checked_add(bytes)) {
            self.budget.give(bytes);
        }
        Ok(())
    }

    /// Gives back what [`Self::take`] took.
    pub(super) fn give(&self, bytes: u64) {
        if self.change(|used| used.checked_sub(bytes)) {
            self.budget.give(bytes);
        }
    }

    /// Gives everything back. What is taken or given from now on makes no difference.
    pub(super) fn close(&self) {
        let bytes = self.bytes.swap(CLOSED, Ordering::Relaxed);
        if bytes != CLOSED {
            self.budget.give(bytes);
        }
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Has a part in memory that others have too, and that is free once nobody has.
    pub(super) fn hold(&self, charge: &Arc<Charge>) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever closes it now empties the list after this.
        if self.bytes.load(Ordering::Relaxed) != CLOSED {
            shared.push(Arc::clone(charge));
        }
    }

    /// Has no part in it any more.
    pub(super) fn let_go(&self, charge: &Arc<Charge>) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|held| !Arc::ptr_eq(held, charge));
    }

    pub(super) fn refusal(&self, asked: u64) -> DeviceError {
        self.budget.refusal(asked)
    }

    fn change(&self, to: impl Fn(u64) -> Option<u64>) -> bool {
        let change = |used: u64| if used == CLOSED { None } else { to(used) };
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_free_once_no_account_has_it() {
        let budget = Arc::new(Budget::new(100));
        let accounts = [Account::open(&budget, 1).unwrap(), Account::open(&budget, 1).unwrap()];
        let [ends, goes] = [(); 2].map(|()| Arc::new(Charge::new(&budget, 10).unwrap()));
        for charge in [&ends, &goes] {
            accounts.iter().for_each(|account| account.hold(charge));
        }
        accounts.iter().for_each(|account| account.let_go(&goes));
        drop(goes);
        drop(ends);
        assert_eq!(budget.used(), 12);
        accounts[0].close();
        assert_eq!(budget.used(), 11);
        accounts[1].close();
        assert_eq!(budget.used(), 0);
        let late = Arc::new(Charge::new(&budget, 10).unwrap());
        accounts[0].hold(&late);
        drop(late);
        assert_eq!(budget.used(), 0, "a closed account holds nothing");
    }

    #[test]
    fn charge_past_its_budget_draws_on_the_reserve_and_gives_all_back() {
        let buffers = Arc::new(Budget::new(100));
        let staging = Arc::new(Budget::of_staging(10, Arc::clone(&buffers)));
        let mut charge = Charge::none(&staging);
        charge.raise(8, true).unwrap();
        assert!(charge.raise(50, false).is_err());
        charge.raise(50, true).unwrap();
        assert_eq!((charge.bytes(), staging.used(), buffers.used()), (50, 8, 42));
        assert!(charge.raise(151, true).is_err());
        assert_eq!((charge.bytes(), staging.used(), buffers.used()), (50, 8, 42));
        charge.lower(9);
        assert_eq!((charge.bytes(), staging.used(), buffers.used()), (9, 8, 1));
        drop(charge);
        assert_eq!((staging.used(), buffers.used()), (0, 0));
    }

    #[test]
    fn quota_is_taken_of_session_identity_and_device_or_of_none() {
        let device = Arc::new(Budget::new(100));
        let identity = Arc::new(Budget::of_identity(60));
        let quota = Quota::new(40, Arc::clone(&identity));
        let (first, second) = (quota.of(&device), quota.of(&device));
        let whose = |refused: Result<Charge, DeviceError>| match refused.unwrap_err() {
            DeviceError::OverQuota { whose, used, limit, .. } => (whose, used, limit),
            DeviceError::OutOfMemory { free, limit, .. } => (Whose::All, limit - free, limit),
            other => panic!("{other}"),
        };
        let kept = Charge::new(&first, 35).unwrap();
        assert_eq!(whose(Charge::new(&first, 6)), (Whose::Session, 35, 40));
        assert_eq!(whose(Charge::new(&second, 26)), (Whose::Identity, 35, 60));
        let others = Charge::new(&device, 50).unwrap();
        assert_eq!(whose(Charge::new(&second, 16)), (Whose::All, 85, 100));
        let used = [&first, &second, &identity, &device].map(|budget| budget.used());
        assert_eq!(used, [35, 0, 35, 85], "what was refused is counted nowhere");
        drop((kept, others));
        let used = [&first, &second, &identity, &device].map(|budget| budget.used());
        assert_eq!(used, [0; 4]);
    }

    #[test]
    fn bodies_of_one_identity_leave_room_for_those_of_the_next() {
        let buffers = Arc::new(Budget::new(1000));
        let staging = Arc::new(Budget::of_staging(96, Arc::clone(&buffers)));
        let identities = [(); 3].map(|()| Arc::new(Budget::of_identity(u64::MAX)));
        let bodies = identities.each_ref().map(|memory| {
            let bodies = Arc::new(Budget::of_bodies(&staging, memory, true));
            assert_eq!(bodies.reach(false), 48);
            Charge::none(&bodies)
        });
        // Each takes a byte at a time for as long as it gets any.
        let most = bodies.map(|mut charge| {
            while charge.raise(charge.bytes() + 1, false).is_ok() {}
            charge
        });
        assert_eq!(most.each_ref().map(Charge::bytes), [48, 24, 12]);
        drop(most);
        let alone = Arc::new(Budget::of_bodies(&staging, &identities[0], false));
        assert!(Charge::new(&alone, 96).is_ok());
        assert_eq!(staging.used(), 0);
    }

    #[test]
    fn body_that_draws_on_the_reserve_is_paid_by_its_identity() {
        let buffers = Arc::new(Budget::new(100));
        let staging = Arc::new(Budget::of_staging(8, Arc::clone(&buffers)));
        let identity = Arc::new(Budget::of_identity(30));
        let bodies = Arc::new(Budget::of_bodies(&staging, &identity, true));
        assert_eq!(bodies.reach(true), 4 + 30);
        let mut charge = Charge::none(&bodies);
        charge.raise(30, true).unwrap();
        assert_eq!((staging.used(), identity.used(), buffers.used()), (0, 30, 30));
        let error = charge.raise(35, true).unwrap_err();
        assert!(error.to_string().contains("--identity-memory"), "{error}");
        // What the staging memory still holds is taken from there.
        charge.raise(34, true).unwrap();
        drop(charge);
        assert_eq!((staging.used(), identity.used(), buffers.used()), (0, 0, 0));
    }

    #[test]
    fn closed_account_has_given_all_back_once() {
        let budget = Arc::new(Budget::new(100));
        let account = Account::open(&budget, 10).unwrap();
        account.take(50).unwrap();
        assert!(account.take(41).is_err());
        account.give(20);
        assert_eq!(budget.used(), 40);
        account.close();
        assert_eq!(budget.used(), 0);
        account.take(30).unwrap();
        account.give(20);
        account.close();
        drop(account);
        assert_eq!(budget.used(), 0);
        assert!(Account::open(&budget, 101).is_err());
    }

    #[test]
    fn kept_memory_never_makes_an_allocation_fail() {
        let budget = Arc::new(Budget::new(100));
        assert!(budget.keep(60));
        assert!(!budget.keep(41));
        assert_eq!(budget.kept(), 60);
        let charge = Charge::new(&budget, 100).unwrap();
        assert!(budget.is_short());
        assert!(!budget.keep(1));
        budget.unkeep(60);
        assert!(!budget.is_short());
        drop(charge);
    }
}
