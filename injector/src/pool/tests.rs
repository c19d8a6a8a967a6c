//! Random schedules against the state: no limit is passed, and no waiter is forgotten.

use std::io;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::idle::IdleConnection;
use super::state::PoolState;
use super::{Lease, LeaseError, ServerQuotas};
use crate::backend::{Connection, LoginVariant, Session, Stream};
use crate::{Address, BackendKind, BackendSpec, ConnectCause, ConnectError, PoolSettings, PoolStatus};

fn spec(min_idle: usize, max: usize) -> BackendSpec {
    let pool = PoolSettings { min_idle, max, ttl: Duration::from_secs(60), ..PoolSettings::default() };
    BackendSpec {
        name: "db".into(),
        kind: BackendKind::Tcp,
        address: Address::Tcp("db:1".into()),
        tls: None,
        pool,
    }
}

fn state(spec: &BackendSpec) -> PoolState {
    PoolState::new(&spec.pool, ServerQuotas::default().register("db", None, Arc::default()))
}

/// A connection, and the server's end of it.
fn connection(now: Instant, variant: LoginVariant) -> (IdleConnection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (stream, session, connect_time) = (Stream::Unix(ours), Session::Tcp, Duration::ZERO);
    let idle = IdleConnection {
        connection: Connection {
            stream,
            session,
            cancel: None,
            variant,
            diag: None,
            connect_time,
            since: now,
        },
        since: now,
    };
    (idle, theirs)
}

fn refused(spec: &BackendSpec) -> Arc<ConnectError> {
    let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    Arc::new(ConnectError::new(spec, ConnectCause::Dial(refused)))
}

const FUNCTIONS: [&str; 2] = ["one", "two"];

fn kinds() -> [LoginVariant; 3] {
    let other = |flags| LoginVariant::Capabilities { flags, collation: 0 };
    [LoginVariant::Plain, other(1), other(2)]
}

/// What a server says to a client that asks for something that cannot be had.
fn no_such(spec: &BackendSpec) -> Arc<ConnectError> {
    let (sqlstate, message) = ("42704".to_owned(), "no such parameter".to_owned());
    Arc::new(ConnectError::new(spec, ConnectCause::Server { sqlstate, message }))
}

type Answer = oneshot::Receiver<Result<Lease, LeaseError>>;

/// The world around the state: connects that the keeper began, server ends, leases that wait.
struct World {
    spec: BackendSpec,
    state: PoolState,
    begun: Vec<LoginVariant>,
    now: Instant,
    servers: Vec<UnixStream>,
    answers: Vec<Answer>,
}

impl World {
    fn status(&self) -> PoolStatus {
        self.state.status(&self.spec, self.now)
    }

    fn turn(&mut self) {
        let round = self.state.round(self.now);
        self.begun.extend(round.start);
    }

    fn step(&mut self, rng: &mut StdRng) {
        match rng.random_range(0..8) {
            0 | 1 => {
                let function = [None, Some(FUNCTIONS[0]), Some(FUNCTIONS[1])][rng.random_range(0..3)];
                let (function, kind) = (function.map(Arc::from), kinds()[rng.random_range(0..3)].clone());
                if let Some(idle) = self.state.take_idle(function.as_ref(), &kind, self.now).alive {
                    assert_eq!(idle.connection.variant, kind);
                    return;
                }
                let (sender, answer) = oneshot::channel();
                self.state.enqueue(function, kind, sender, self.now);
                self.answers.push(answer);
            }
            2 | 3 if !self.begun.is_empty() => {
                let kind = self.begun.swap_remove(rng.random_range(0..self.begun.len()));
                let (idle, server) = connection(self.now, kind);
                self.servers.push(server);
                drop(self.state.connected(idle, self.now));
            }
            4 if !self.begun.is_empty() => {
                let kind = self.begun.swap_remove(rng.random_range(0..self.begun.len()));
                let error = if rng.random_bool(0.5) { refused(&self.spec) } else { no_such(&self.spec) };
                drop(self.state.failed(&error, &kind, self.now));
            }
            5 if self.status().leased > 0 && rng.random_bool(0.5) => self.state.release(self.now),
            5 if self.status().leased > 0 => {
                let (idle, server) = connection(self.now, kinds()[rng.random_range(0..3)].clone());
                self.servers.push(server);
                let function = FUNCTIONS[rng.random_range(0..2)].into();
                drop(self.state.recycled(function, idle, self.now));
            }
            6 if !self.answers.is_empty() => {
                self.answers.swap_remove(rng.random_range(0..self.answers.len()));
            }
            7 => {
                self.now += Duration::from_millis(rng.random_range(0..20_000));
                if rng.random_bool(0.3) {
                    self.servers.clear(); // the server restarts
                }
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn no_schedule_passes_the_limit_or_forgets_a_waiter() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (min_idle, max) = (rng.random_range(0..5), rng.random_range(1..8));
        let mut spec = spec(min_idle, max);
        spec.pool.follow_demand = rng.random_bool(0.5);
        let state = state(&spec);
        let now = Instant::now();
        let mut world = World { spec, state, begun: vec![], now, servers: vec![], answers: vec![] };
        for step in 0..300 {
            world.step(&mut rng);
            let status = world.status();
            let total = status.idle + status.kept + status.connecting + status.leased;
            assert!(total <= max, "seed {seed} step {step}: {status:?}");
            assert!((status.min_idle..=max).contains(&status.wanted), "seed {seed} step {step}: {status:?}");
            world.turn();
            let status = world.status();
            assert_eq!(status.connecting, world.begun.len(), "seed {seed} step {step}");
            let full = status.leased == max;
            assert!(
                status.waiting == 0 || status.connecting > 0 || full,
                "seed {seed} step {step}: {status:?}"
            );
        }
    }
}

#[tokio::test]
async fn connects_begun_follow_need_room_and_health() {
    // (min_idle, max, waiting, after a failure) -> connects under way
    let table = [
        (0, 4, 0, false, 0),
        (2, 4, 0, false, 2),
        (2, 4, 1, false, 3),
        (2, 4, 9, false, 4),
        (9, 4, 0, false, 4),
        (2, 0, 1, false, 1),
        (2, 4, 0, true, 0),
        (2, 4, 3, true, 1),
    ];
    for (min_idle, max, waiting, failing, expected) in table {
        let spec = spec(min_idle, max);
        let mut state = state(&spec);
        let now = Instant::now();
        if failing {
            let begun = state.round(now).start;
            begun.iter().for_each(|kind| drop(state.failed(&refused(&spec), kind, now)));
        }
        let answers: Vec<Answer> = (0..waiting)
            .map(|_| {
                let (sender, answer) = oneshot::channel();
                state.enqueue(None, LoginVariant::Plain, sender, now);
                answer
            })
            .collect();
        let begun = state.round(now).start.len();
        assert_eq!(begun, expected, "min_idle {min_idle}, max {max}, waiting {waiting}, failing {failing}");
        drop(answers);
    }
}

#[tokio::test]
async fn expired_connections_are_replaced() {
    let spec = spec(1, 2);
    let mut state = state(&spec);
    let now = Instant::now();
    assert_eq!(state.round(now).start.len(), 1);
    let (idle, _server) = connection(now, LoginVariant::Plain);
    drop(state.connected(idle, now));
    let end = state.round(now).next.unwrap() - now;
    assert!((Duration::from_secs(48)..=Duration::from_secs(60)).contains(&end), "{end:?}");
    let round = state.round(now + end);
    assert_eq!((round.expired.len(), round.start.len()), (1, 1));
}

#[tokio::test]
async fn what_a_function_has_used_is_for_nobody_else() {
    let spec = spec(1, 3);
    let (mut state, now) = (state(&spec), Instant::now());
    let mut servers = Vec::new();
    let mut new = || {
        let (idle, server) = connection(now, LoginVariant::Plain);
        servers.push(server);
        idle
    };
    let [one, two] = FUNCTIONS;
    // One is leased, cleaned and kept; another one is idle for all functions.
    assert_eq!(state.round(now).start.len(), 1);
    drop(state.connected(new(), now));
    let take = |state: &mut PoolState, function: Option<&str>| {
        state.take_idle(function.map(Arc::from).as_ref(), &LoginVariant::Plain, now).alive.is_some()
    };
    assert!(take(&mut state, Some(one)));
    assert!(state.recycled(one.into(), new(), now).is_none());
    assert_eq!(state.round(now).start.len(), 1);
    drop(state.connected(new(), now));
    let counts = |state: &PoolState| {
        let status = state.status(&spec, now);
        (status.idle, status.kept, status.leased)
    };
    assert_eq!(counts(&state), (1, 1, 0));
    assert!(take(&mut state, Some(two)));
    assert!(!take(&mut state, Some(two)) && !take(&mut state, None));
    assert_eq!(counts(&state), (0, 1, 1));
    assert!(take(&mut state, Some(one)));
    assert_eq!(counts(&state), (0, 0, 2));

    // A waiter of the same function gets it at once, another one only its place.
    let wait = |state: &mut PoolState, function: &str| {
        let (sender, answer) = oneshot::channel();
        state.enqueue(Some(function.into()), LoginVariant::Plain, sender, now);
        answer
    };
    let _others = (wait(&mut state, two), wait(&mut state, one));
    let (_, handed_over) = state.recycled(one.into(), new(), now).expect("its second waiter");
    drop(handed_over);
    assert_eq!((counts(&state), state.waiting()), ((0, 0, 2), 1));
    assert_eq!(state.round(now).start.len(), 1, "for the other, whose connect takes the last place");
    assert!(state.recycled(one.into(), new(), now).is_none());
    let _third = wait(&mut state, two);
    let round = state.round(now);
    assert_eq!((round.start.len(), round.expired.len()), (1, 1), "what is kept makes room");
}

#[tokio::test]
async fn a_client_gets_a_session_of_its_kind_and_the_next_one_finds_it_ready() {
    let spec = spec(2, 2);
    let (mut state, now) = (state(&spec), Instant::now());
    let [plain, kind, other] = kinds();
    let mut servers = Vec::new();
    let mut end = |state: &mut PoolState| {
        let begun = state.round(now).start;
        for kind in &begun {
            let (idle, server) = connection(now, kind.clone());
            servers.push(server);
            drop(state.connected(idle, now));
        }
        begun
    };
    assert_eq!(end(&mut state), [plain.clone(), plain.clone()]);
    let ask = |state: &mut PoolState, kind: &LoginVariant| {
        let (sender, answer) = oneshot::channel();
        state.enqueue(Some("one".into()), kind.clone(), sender, now);
        answer
    };
    // All places are taken by idle ones: one of them makes room.
    assert!(state.take_idle(None, &kind, now).alive.is_none());
    let _first = ask(&mut state, &kind);
    assert_eq!(end(&mut state), slice::from_ref(&kind));
    assert_eq!(state.expected("one"), kind);
    state.release(now);
    assert_eq!(end(&mut state), slice::from_ref(&kind));
    assert!(state.take_idle(None, &kind, now).alive.is_some(), "it is ready");
    state.release(now);
    assert_eq!(end(&mut state), slice::from_ref(&kind));

    // What the server refuses is the error of the one who has asked for it.
    let (_waits, _refused) = (ask(&mut state, &plain), ask(&mut state, &other));
    drop(state.round(now));
    let (first, told) = state.failed(&no_such(&spec), &other, now);
    assert!(!first && told.len() <= 1 && !state.is_down());
    assert_ne!(state.expected("one"), other);
}
