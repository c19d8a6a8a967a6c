use super::*;
use nix::unistd::ftruncate;

/// A page, its descriptor, and a second mapping of it.
fn both() -> (Activity, Activity, OwnedFd) {
    let (agent, page) = Activity::create().unwrap();
    let function = Activity::adopt(page.try_clone().unwrap()).unwrap();
    (agent, function, page)
}

/// A memfd of this size with these seals.
fn memfd(bytes: i64, seals: SealFlag) -> OwnedFd {
    let page = memfd_create(c"test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    ftruncate(&page, bytes).unwrap();
    fcntl(&page, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    page
}

#[test]
fn two_mappings_see_each_other() {
    let (agent, function, page) = both();
    drop(page);
    assert_eq!(agent.read(), ActivityReading { open: None, accepted: 0, changed_ns: 0, sampled: false });
    function.opened(5);
    assert_eq!(agent.read(), ActivityReading { open: None, accepted: 1, changed_ns: 5, sampled: false });
    function.counts();
    function.opened(6);
    assert_eq!(agent.read(), ActivityReading { open: Some(2), accepted: 2, changed_ns: 6, sampled: false });
    function.closed(9);
    assert_eq!(agent.read(), ActivityReading { open: Some(1), accepted: 2, changed_ns: 9, sampled: false });
    function.closed(8);
    assert_eq!(
        agent.read(),
        ActivityReading { open: Some(0), accepted: 2, changed_ns: 9, sampled: false },
        "a late thread"
    );
}

#[test]
fn closed_at_zero_stays_zero() {
    let (agent, function, _page) = both();
    function.counts();
    function.closed(3);
    assert_eq!(agent.read(), ActivityReading { open: Some(0), accepted: 0, changed_ns: 3, sampled: false });
    function.opened(4);
    assert_eq!(agent.read().open, Some(1));
}

#[test]
fn threads_lose_no_count() {
    let (agent, function, _page) = both();
    function.counts();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let function = &function;
            scope.spawn(move || {
                for turn in 0..1000 {
                    function.opened(turn);
                    if turn % 4 != thread {
                        function.closed(turn);
                    }
                }
            });
        }
    });
    assert_eq!(
        agent.read(),
        ActivityReading { open: Some(1000), accepted: 4000, changed_ns: 999, sampled: false }
    );
}

#[test]
fn the_size_cannot_be_changed_by_anybody() {
    let (agent, _function, page) = both();
    for bytes in [0, 1, 8192] {
        assert_eq!(ftruncate(&page, bytes), Err(Errno::EPERM));
    }
    let more = fcntl(&page, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE));
    assert_eq!(more, Err(Errno::EPERM), "nor can the other side be kept from writing");
    assert_eq!(agent.read().accepted, 0);
}

#[test]
fn what_is_not_a_sealed_page_is_not_mapped() {
    let size = PAGE_BYTES.try_into().unwrap();
    let mut refused = vec![
        std::fs::File::open("/dev/zero").unwrap().into(),
        tempfile::tempfile().unwrap().into(),
        memfd(size - 1, seals()),
        memfd(size + 1, seals()),
        memfd(0, seals()),
        memfd(size, SealFlag::empty()),
    ];
    refused.extend(seals().iter().map(|missing| memfd(size, seals() - missing)));
    for page in refused {
        assert_eq!(Activity::adopt(page).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    Activity::adopt(memfd(size, seals())).unwrap();
}

/// One client's coming and going, told by the page and by messages, interleaved. In a release build:
/// `cargo test --release -p headstart-wire -- --ignored --nocapture`.
#[test]
#[ignore = "measures, promises nothing"]
fn what_a_change_costs() {
    use crate::{Channel, ToAgent};
    use std::time::Instant;
    const TURNS: u32 = 2_000;
    const ROUNDS: usize = 100;

    let (agent, function, _page) = both();
    let (hears, says) = Channel::pair().unwrap();
    let (mut page, mut messages) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for now_ns in 0..u64::from(TURNS) {
            std::hint::black_box(&function).opened(now_ns);
            std::hint::black_box(&function).closed(now_ns);
        }
        page.push(begin.elapsed().as_nanos() / u128::from(TURNS));
        let begin = Instant::now();
        for now_ns in 0..u64::from(TURNS) {
            // Two messages as short as they get.
            for message in [ToAgent::Ready { ready_ns: now_ns }, ToAgent::Ack { injected_ns: now_ns }] {
                says.send(&message, &[]).unwrap();
                hears.recv::<ToAgent>().unwrap();
            }
        }
        messages.push(begin.elapsed().as_nanos() / u128::from(TURNS));
    }
    assert_eq!(agent.read().accepted, u64::from(TURNS) * ROUNDS as u64);
    for (name, times) in [("page", &mut page), ("messages", &mut messages)] {
        times.sort_unstable();
        let (best, half, worst) = (times[0], times[ROUNDS / 2], times[ROUNDS - 1]);
        println!(
            "{name}: opened and closed cost {best} ns at best, {half} ns in the median, {worst} ns at worst"
        );
    }
}

#[test]
fn what_the_agent_samples_is_marked_as_that() {
    let (agent, _) = Activity::create().unwrap();
    agent.sample(0, 0, 5);
    assert_eq!(agent.read(), ActivityReading { open: Some(0), accepted: 0, changed_ns: 0, sampled: true });
    agent.sample(2, 3, 7);
    agent.sample(2, 0, 8);
    assert_eq!(agent.read(), ActivityReading { open: Some(2), accepted: 3, changed_ns: 7, sampled: true });
    agent.sample(0, 0, 9);
    agent.touch(11);
    assert_eq!(agent.read(), ActivityReading { open: Some(0), accepted: 3, changed_ns: 11, sampled: true });
}
