//! How a front asks for the start of a function, without a message for each of its clients.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::FunctionId;

/// Tells fronts which number a function has, and whether it is cold. The owner of its state writes it.
#[derive(Debug, Default)]
pub struct Doorbell(AtomicU64);

/// Demand is no news at present.
const WARM: u64 = 1 << 32;
/// Only clients with a key may ask for it early.
const NEEDS_KEY: u64 = 1 << 34;
/// The function has a number.
const SERVED: u64 = 1 << 33;

impl Doorbell {
    /// The function is served under this number, and is cold.
    pub fn serve(&self, number: FunctionId) {
        self.0.store(SERVED | u64::from(number), Ordering::Relaxed);
    }

    /// The function is no longer served.
    pub fn close(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Whether demand is no news.
    pub fn set_warm(&self, warm: bool) {
        let set = |bell: u64| Some(if warm { bell | WARM } else { bell & !WARM });
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, set);
    }

    /// Whether only clients with a key may ask for it early.
    pub fn require_key(&self, required: bool) {
        let set = |bell: u64| Some(if required { bell | NEEDS_KEY } else { bell & !NEEDS_KEY });
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, set);
    }

    /// The function's number, if it is served.
    #[must_use]
    pub fn number(&self) -> Option<FunctionId> {
        let bell = self.0.load(Ordering::Relaxed);
        (bell & SERVED != 0).then(|| FunctionId::try_from(bell & u64::from(u32::MAX)).ok()).flatten()
    }

    /// The function's number, if it is served, demand is news, and each client may ask for it.
    #[must_use]
    pub fn cold(&self) -> Option<FunctionId> {
        self.number().filter(|_| self.0.load(Ordering::Relaxed) & (WARM | NEEDS_KEY) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rings_for_a_function_that_is_served_and_cold() {
        let bell = Doorbell::default();
        assert_eq!(bell.cold(), None);
        bell.serve(FunctionId::MAX);
        assert_eq!(bell.cold(), Some(FunctionId::MAX));
        bell.set_warm(true);
        assert_eq!(bell.cold(), None);
        bell.set_warm(false);
        bell.require_key(true);
        assert_eq!((bell.cold(), bell.number()), (None, Some(FunctionId::MAX)));
        bell.require_key(false);
        assert_eq!(bell.cold(), Some(FunctionId::MAX));
        bell.close();
        assert_eq!(bell.cold(), None);
    }
}
