//! The pool in front of a real PostgreSQL that comes, goes, and is stormed.

mod common;

use std::time::{Duration, Instant};

use common::{Adopted, Postgres, postgres, relayed, spec, until};
use headstart_injector::{BackendKind, BackendSpec, DiscardReason, FailureReason, FallbackReason, Pool};

fn backend(server: &Postgres, min_idle: usize, max: usize) -> BackendSpec {
    let mut spec = spec(BackendKind::Postgres(postgres("truster")), server.tcp());
    (spec.pool.min_idle, spec.pool.max) = (min_idle, max);
    spec
}

#[tokio::test]
async fn pool_recovers_when_the_server_comes_up() {
    let Some(server) = Postgres::start() else { return };
    server.stop();
    let pool = Pool::spawn(backend(&server, 3, 8));
    let status = until(&pool, "failing repeatedly", |s| s.tally.failures[&FailureReason::Dial] > 3).await;
    assert!(status.last_error.expect("an error").contains("orders-db"));
    let error = pool.lease().await.expect_err("no server listens");
    assert_eq!((error.reason(), error.retry_helps()), (FallbackReason::ConnectFailed, true));

    server.run();
    let lease = pool.lease().await.expect("the first lease after recovery");
    assert_eq!(Adopted::new(relayed(lease).fd).query("select 1").as_deref(), Ok("1"));
    let status = until(&pool, "full again", |s| s.idle == 3).await;
    assert_eq!((status.last_error, status.next_attempt_in), (None, None));
}

#[tokio::test]
async fn restart_hands_over_no_dead_connection() {
    let Some(server) = Postgres::start() else { return };
    let pool = Pool::spawn(backend(&server, 4, 8));
    until(&pool, "full", |s| s.idle == 4).await;
    server.stop();
    server.run();
    // The pool had no chance to notice: this thread was busy all the time.
    let mut leases = Vec::new();
    for _ in 0..4 {
        let lease = relayed(pool.lease().await.expect("a lease"));
        leases.push((Adopted::new(lease.fd), lease.slot));
    }
    for (client, _) in &mut leases {
        assert_eq!(client.query("select 1").as_deref(), Ok("1"));
    }
    let discards = pool.status().tally.discards;
    let dead = discards[&DiscardReason::UnreadMessage] + discards[&DiscardReason::ClosedByServer];
    assert_eq!(dead, 4, "{discards:?}");

    drop(leases);
    until(&pool, "full again", |s| s.idle == 4 && s.leased == 0).await;
    server.stop();
    let status = until(&pool, "aware while idle", |s| s.idle == 0).await;
    assert!(status.tally.discards.values().sum::<u64>() >= 8, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storm_of_leases_never_passes_the_limit() {
    const LEASES: usize = 500;
    const MAX: usize = 64;
    let Some(server) = Postgres::start() else { return };
    let mut spec = backend(&server, 8, MAX);
    spec.pool.wait = Duration::from_secs(60);
    let pool = Pool::spawn(spec);
    let begun = Instant::now();
    let leases: Vec<_> = (0..LEASES).map(|_| tokio::spawn(pool.lease())).collect();
    let users: Vec<_> = leases.into_iter().map(|lease| tokio::spawn(use_once(lease))).collect();
    let counter = Pool::spawn(backend(&server, 0, 1)).lease().await.expect("a lease of our own");
    let counting = tokio::task::spawn_blocking(move || Adopted::new(relayed(counter).fd));
    let mut counter = counting.await.expect("no panic");
    let watched = pool.clone();
    let watcher = tokio::task::spawn_blocking(move || {
        let (mut peak, mut samples) = (0, 0);
        while watched.status().tally.discards[&DiscardReason::Used] < LEASES as u64 {
            let status = watched.status();
            assert!(status.idle + status.connecting + status.leased <= MAX, "{status:?}");
            let sql = "select count(*) from pg_stat_activity where usename = 'truster'";
            let others = counter.query(sql).expect("a number").parse::<usize>().expect("a number") - 1;
            peak = peak.max(others);
            samples += 1;
        }
        (peak, samples)
    });
    for user in users {
        user.await.expect("a working connection");
    }
    let took = begun.elapsed();
    let (peak, samples) = watcher.await.expect("no panic");
    println!("{LEASES} leases through {MAX}: {took:?}; server saw at most {peak} in {samples} samples");
    assert!((2..=MAX).contains(&peak), "{peak}");
    until(&pool, "calm", |s| s.leased == 0 && s.waiting == 0 && s.idle >= 8).await;
}

/// Runs a query, logs out, and only then gives the slot back: so the server's count is exact.
async fn use_once(
    lease: tokio::task::JoinHandle<Result<headstart_injector::Lease, headstart_injector::LeaseError>>,
) {
    let lease = lease.await.expect("no panic").expect("a lease");
    let work = tokio::task::spawn_blocking(move || {
        let lease = relayed(lease);
        let mut client = Adopted::new(lease.fd);
        assert_eq!(client.query("select 1").as_deref(), Ok("1"));
        client.finish();
        drop(lease.slot);
    });
    work.await.expect("no panic");
}

/// Figures, not a verdict: an idle lease, and how long the pool takes to replace it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_lease_is_quick_and_replaced() {
    let Some(server) = Postgres::start() else { return };
    let mut spec = backend(&server, 4, 16);
    spec.kind = BackendKind::Postgres(postgres("scrammer"));
    let pool = Pool::spawn(spec);
    let (mut leasing, mut replacing) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        until(&pool, "full", |s| s.idle == 4).await;
        let begun = Instant::now();
        let lease = pool.try_lease().expect("an idle connection");
        leasing.push(begun.elapsed());
        assert_eq!(lease.fallback, None);
        while pool.status().idle < 4 {
            tokio::task::yield_now().await;
        }
        replacing.push(begun.elapsed());
        drop(lease);
    }
    leasing.sort();
    replacing.sort();
    println!("try_lease: min {:?}, p50 {:?}, p90 {:?}", leasing[0], leasing[20], leasing[36]);
    println!(
        "replaced (TCP, SCRAM): min {:?}, p50 {:?}, p90 {:?}",
        replacing[0], replacing[20], replacing[36]
    );
    assert!(leasing[0] < Duration::from_millis(1), "{leasing:?}"); // the median is the machine's load
}
