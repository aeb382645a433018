//! How much memory the whole server hands out.
//!
//! Owns: [`Budget`], the account of one kind of memory, shared by all shards; `Charge`, what one
//! piece of memory has taken from it. Absent: the memory itself (`segment`, `shared`).
//!
//! Memory that is kept warm for later use is counted beside what is in use: it never makes an
//! allocation fail, and is to be let go where the two together pass the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::DeviceError;

/// How much memory all heaps together may hand out.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
    /// Beside `used`.
    kept: AtomicU64,
    reserve: Option<Arc<Budget>>,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Budget {
        Budget { limit, used: AtomicU64::new(0), kept: AtomicU64::new(0), reserve: None }
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
        self.kept.load(Ordering::Relaxed)
    }

    /// The most that anybody can ever have; with `draws`, from the reserve too.
    #[must_use]
    pub fn reach(&self, draws: bool) -> u64 {
        let more = self.reserve.as_ref().filter(|_| draws).map_or(0, |reserve| reserve.limit);
        self.limit.saturating_add(more)
    }

    pub(super) fn refusal(&self, asked: u64) -> DeviceError {
        let free = self.limit.saturating_sub(self.used());
        DeviceError::OutOfMemory { asked, free, limit: self.limit }
    }

    /// Whether what is kept stands in the way.
    pub(super) fn is_short(&self) -> bool {
        self.used().saturating_add(self.kept()) > self.limit
    }

    /// Counts bytes as kept, if they are nobody's loss.
    pub(super) fn keep(&self, bytes: u64) -> bool {
        self.kept.fetch_add(bytes, Ordering::Relaxed);
        let fits = !self.is_short();
        if !fits {
            self.unkeep(bytes);
        }
        fits
    }

    pub(super) fn unkeep(&self, bytes: u64) {
        self.kept.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn take(&self, bytes: u64) -> Result<(), DeviceError> {
        let add = |used: u64| used.checked_add(bytes).filter(|total| *total <= self.limit);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        taken.map(drop).map_err(|_| self.refusal(bytes))
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
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
}

const CLOSED: u64 = u64::MAX;

impl Account {
    /// An account that begins with `bytes`.
    pub(super) fn open(budget: &Arc<Budget>, bytes: u64) -> Result<Arc<Account>, DeviceError> {
        budget.take(bytes)?;
        Ok(Arc::new(Account { budget: Arc::clone(budget), bytes: AtomicU64::new(bytes) }))
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
