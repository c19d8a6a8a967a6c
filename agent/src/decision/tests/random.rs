//! Random schedules: see [`super::world`].

use super::world::World;

/// Each has its own seed, so that any of them can be run alone.
const SCHEDULES: u64 = 100_000;

/// Runs that schedule only, and prints what happens in it.
const SEED: &str = "HEADSTART_SCHEDULE";

/// They share nothing.
const THREADS: u64 = 2;

#[test]
fn in_any_schedule_every_client_is_served_or_answered_within_the_limits_and_the_function_comes_to_rest() {
    if let Ok(seed) = std::env::var(SEED) {
        return schedule(seed.parse().unwrap(), true);
    }
    std::thread::scope(|threads| {
        for first in 0..THREADS {
            let own = (first..SCHEDULES).step_by(usize::try_from(THREADS).unwrap());
            threads.spawn(|| own.for_each(|seed| schedule(seed, false)));
        }
    });
}

fn schedule(seed: u64, trace: bool) {
    if let Err(mistake) = World::new(seed, trace).run() {
        let trace = World::new(seed, true).traced();
        panic!("{mistake}\nschedule {seed}, again with {SEED}={seed}; it ends with\n{trace}");
    }
}
