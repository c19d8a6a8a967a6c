//! Which kinds of sessions clients ask for: what to keep ready, and what to expect.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::backend::LoginVariant;

/// How many leases are remembered.
const RECENT_MAX: usize = 32;

/// The kinds of the last leases.
#[derive(Debug, Default)]
pub(super) struct Variants {
    /// The newest last.
    recent: VecDeque<LoginVariant>,
    /// What each function's client asked for last. Functions are those of the configuration.
    last: HashMap<Arc<str>, LoginVariant>,
}

impl Variants {
    /// A lease was wanted.
    pub(super) fn leased(&mut self, function: Option<&Arc<str>>, variant: &LoginVariant) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(variant.clone());
        if let Some(function) = function {
            self.last.insert(Arc::clone(function), variant.clone());
        }
    }

    /// What the function's next client will probably ask for.
    pub(super) fn expected(&self, function: &str) -> LoginVariant {
        self.last.get(function).cloned().unwrap_or_default()
    }

    /// It cannot be had.
    pub(super) fn forget(&mut self, variant: &LoginVariant) {
        self.recent.retain(|one| one != variant);
        self.last.retain(|_, one| one != variant);
    }

    /// The kinds of the next `missing` connections, so that of all `wanted` idle ones each kind has a share as among the
    /// last leases. `have` says how many there are of a kind.
    pub(super) fn next(
        &self,
        missing: usize,
        wanted: usize,
        have: impl Fn(&LoginVariant) -> usize,
    ) -> Vec<LoginVariant> {
        let mut shares = self.shares(wanted);
        let mut next = Vec::new();
        for share in &mut shares {
            share.have = have(&share.variant);
        }
        for _ in 0..missing {
            let neediest =
                shares.iter_mut().max_by_key(|share| (share.is_starved(), share.lacks(), share.count));
            let Some(neediest) = neediest else { break };
            neediest.have += 1;
            next.push(neediest.variant.clone());
        }
        next
    }

    /// When all `wanted` are idle, and a kind that was asked for repeatedly has less than its share: the kind of which there
    /// are most beyond its share.
    pub(super) fn surplus(
        &self,
        wanted: usize,
        kinds: &[LoginVariant],
        have: impl Fn(&LoginVariant) -> usize,
    ) -> Option<LoginVariant> {
        let mut shares = self.shares(wanted);
        for share in &mut shares {
            share.have = have(&share.variant);
        }
        // One more than its share is not worth a login: shares change with each lease.
        let tolerated = match shares.iter().any(Share::is_starved) {
            true => 0,
            false if shares.iter().any(|share| share.usual && share.lacks() > 0) => 1,
            false => return None,
        };
        let share_of = |kind: &LoginVariant| {
            shares.iter().find(|share| share.variant == *kind).map_or(0, |share| share.target)
        };
        let beyond = |kind: &&LoginVariant| have(kind).saturating_sub(share_of(kind));
        kinds.iter().max_by_key(beyond).filter(|kind| beyond(kind) > tolerated).cloned()
    }

    fn shares(&self, wanted: usize) -> Vec<Share> {
        // What is configured is what functions get that hold their connections themselves.
        let mut shares = vec![Share::new(LoginVariant::Plain)];
        for variant in &self.recent {
            match shares.iter_mut().find(|share| share.variant == *variant) {
                Some(share) => share.count += 1,
                None => shares.push(Share { count: 1, ..Share::new(variant.clone()) }),
            }
        }
        let total = self.recent.len().max(1);
        for (index, share) in shares.iter_mut().enumerate() {
            // Once is not often enough to take the place of another.
            share.usual = share.count > 1 || (index == 0 && wanted > 1);
            share.target = ((2 * wanted * share.count + total) / (2 * total)).max(usize::from(share.usual));
        }
        shares
    }
}

/// One kind's part of the idle connections.
#[derive(Debug)]
struct Share {
    variant: LoginVariant,
    /// Among the last leases.
    count: usize,
    usual: bool,
    target: usize,
    have: usize,
}

impl Share {
    fn new(variant: LoginVariant) -> Self {
        Self { variant, count: 0, usual: false, target: 0, have: 0 }
    }

    fn is_starved(&self) -> bool {
        self.usual && self.have == 0
    }

    fn lacks(&self) -> isize {
        self.target.cast_signed() - self.have.cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> LoginVariant {
        match name {
            "plain" => LoginVariant::Plain,
            name => LoginVariant::Parameters([(name.to_owned(), String::new())].into()),
        }
    }

    fn after(leases: &[&str]) -> Variants {
        let mut variants = Variants::default();
        leases.iter().for_each(|name| variants.leased(Some(&"f".into()), &kind(name)));
        variants
    }

    #[test]
    fn each_kind_is_ready_as_often_as_it_was_asked_for() {
        for (leases, wanted, ready) in [
            (&[][..], 3, &["plain", "plain", "plain"][..]),
            (&["a"; 9], 1, &["a"]),
            (&["a"; 9], 4, &["a", "plain", "a", "a"]),
            (&["plain", "a", "plain", "a"], 4, &["a", "plain", "a", "plain"]),
            (&["plain"; 9], 2, &["plain", "plain"]),
        ] {
            let next = after(leases).next(wanted, wanted, |_| 0);
            let mut expected: Vec<_> = ready.iter().map(|name| kind(name)).collect();
            let count =
                |all: &[LoginVariant], one: &LoginVariant| all.iter().filter(|kind| *kind == one).count();
            expected.sort_by_key(|one| count(&next, one));
            assert_eq!(next.len(), ready.len());
            for one in &expected {
                assert_eq!(count(&next, one), count(&expected, one), "{leases:?}: {next:?}");
            }
        }
        assert_eq!(
            (after(&["a", "b"]).expected("f"), after(&["a"]).expected("g")),
            (kind("b"), kind("plain"))
        );
        let mut variants = after(&["a", "a"]);
        variants.forget(&kind("a"));
        assert_eq!(
            (variants.expected("f"), variants.next(1, 1, |_| 0)),
            (kind("plain"), vec![kind("plain")])
        );
    }

    #[test]
    fn a_kind_that_was_asked_for_repeatedly_takes_the_place_of_another() {
        let plain = [kind("plain")];
        let have = |one: &LoginVariant| if *one == kind("plain") { 4 } else { 0 };
        assert_eq!(after(&[]).surplus(4, &plain, have), None);
        assert_eq!(after(&["plain", "a"]).surplus(4, &plain, have), None, "once is not enough");
        assert_eq!(after(&["a", "a"]).surplus(4, &plain, have), Some(kind("plain")));
        assert_eq!(
            after(&["a", "a"]).surplus(1, &plain, |one| usize::from(*one == kind("plain"))),
            Some(kind("plain"))
        );
        assert_eq!(after(&["a", "a"]).surplus(2, &plain, |_| 1), None, "there is one");
        let three_and_one = |one: &LoginVariant| if *one == kind("plain") { 3 } else { 1 };
        assert_eq!(after(&["a", "a"]).surplus(4, &plain, three_and_one), Some(kind("plain")));
        assert_eq!(after(&["a", "a"]).surplus(4, &plain, |_| 2), None, "about its share");
        // The last of a kind stays.
        let one = |one: &LoginVariant| usize::from(*one == kind("plain"));
        assert_eq!(after(&["plain", "plain", "a", "a"]).surplus(1, &plain, one), None);
    }
}
