//! `make soak`: a node whose functions start, freeze, stop, change and misbehave at random, under floods and without its
//! database now and then, while clients keep coming.
//!
//! No request may be lost. Every five minutes clients and events pause until all is cold; what the agent then uses must be the
//! same at the end as it was after ten minutes.

mod events;
mod rest;
mod stage;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use headstart_integration_tests::lab::Namespace;
use headstart_integration_tests::lab::node::get_from;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use events::Events;
use stage::Stage;

const CLIENTS: u64 = 4;
/// The longest pause of a client between two requests.
const CLIENT_PAUSE_MS: u64 = 250;
/// Requests of a client to one function, less than.
const STAYS: u32 = 30;
/// From one rest to the next.
const BETWEEN_RESTS: Duration = Duration::from_secs(300);
/// What is used from then on is judged: caches and the allocator have had their time.
const WARM_UP: Duration = Duration::from_secs(600);
/// Requests that are lost and shown: the first ones tell.
const SHOWN: usize = 10;

/// Runs a node under everything at once, and says what it lost and what it kept.
#[derive(Parser)]
struct Options {
    /// How long.
    #[arg(long, default_value_t = 45)]
    minutes: u64,
    /// The order of events of an earlier run.
    #[arg(long)]
    seed: Option<u64>,
}

/// How long after an outage of its database a function may still find that a session is gone.
const AFTER_OUTAGE: Duration = Duration::from_secs(2);

/// What the clients have seen.
struct Requests {
    begun: Instant,
    answered: AtomicU64,
    lost: RwLock<Vec<String>>,
    /// Until then, in milliseconds since the begin, a function may say that its database does not answer.
    outage_until: AtomicU64,
    /// How often one said so.
    told_of_outage: AtomicU64,
}

impl Requests {
    fn ms(&self, time: Instant) -> u64 {
        u64::try_from(time.duration_since(self.begun).as_millis()).unwrap_or(u64::MAX)
    }

    /// The database goes away now, or is back.
    fn outage(&self, away: bool) {
        let until = if away { u64::MAX } else { self.ms(Instant::now() + AFTER_OUTAGE) };
        self.outage_until.store(until, Ordering::Relaxed);
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(rand::random);
    println!("{} minutes, seed {seed}", options.minutes);
    match run(Duration::from_secs(60 * options.minutes), seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seed {seed}: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(lasting: Duration, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::new()?;
    let mut rests = vec![stage.rest(Duration::ZERO)?];
    let begun = Instant::now();
    let requests = Requests {
        begun,
        answered: AtomicU64::new(0),
        lost: RwLock::default(),
        outage_until: AtomicU64::new(0),
        told_of_outage: AtomicU64::new(0),
    };
    let mut events = Events::default();
    while begun.elapsed() < lasting {
        let until = (begun + lasting).min(Instant::now() + BETWEEN_RESTS);
        let seeds: Vec<u64> = (0..CLIENTS).map(|_| random.random()).collect();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for seed in seeds {
                let (targets, client) = (stage.targets(), stage.node.client.clone());
                let (over, requests) = (&over, &requests);
                scope.spawn(move || ask(StdRng::seed_from_u64(seed), &targets, &client, over, requests));
            }
            let happened = events.go_on(&mut stage, &requests, &mut random, until);
            over.store(true, Ordering::Relaxed);
            happened
        })?;
        rests.push(stage.rest(begun.elapsed())?);
        println!(
            "{}: {} answered, {}",
            rests.last().map(ToString::to_string).unwrap_or_default(),
            requests.answered.load(Ordering::Relaxed),
            events
        );
        let lost = requests.lost.read().map_err(|_| anyhow::anyhow!("a client ended"))?;
        ensure!(
            lost.len() < SHOWN,
            "too many are lost:\n{}\n{}",
            lost.join("\n"),
            stage.save_log()?.display()
        );
    }
    let log = stage.save_log()?;
    println!("the agent's log: {}", log.display());
    let lost = requests.lost.into_inner().unwrap_or_default();
    let rested = rests.iter().find(|rest| rest.at >= WARM_UP);
    let judged = rested.zip(rests.last()).filter(|(first, last)| first.at < last.at);
    match judged {
        Some((first, last)) => last.judge(first)?,
        None => println!("not judged: memory and descriptors, which takes more than ten minutes"),
    }
    stage.stop()?;
    ensure!(lost.is_empty(), "{} requests are lost:\n{}", lost.len(), lost.join("\n"));
    println!(
        "no request is lost of {}; {} were told of an outage of the database",
        requests.answered.into_inner(),
        requests.told_of_outage.into_inner()
    );
    Ok(())
}

/// One client: asks one function after another.
fn ask(
    mut random: StdRng,
    targets: &[(String, SocketAddr)],
    client: &Namespace,
    over: &AtomicBool,
    requests: &Requests,
) {
    let mut stays = 0;
    let mut target = targets.first();
    while !over.load(Ordering::Relaxed) {
        // It stays with a function for some requests, so that others have time to fall asleep.
        if stays == 0 {
            stays = random.random_range(1..STAYS);
            target = targets.get(random.random_range(0..targets.len()));
        }
        stays -= 1;
        let Some((name, address)) = target else { return };
        let begun = Instant::now();
        let failure = match get_from(client, *address) {
            Ok(Ok(reply)) if reply.status == 200 => None,
            Ok(Ok(reply))
                if reply.status == 502
                    && requests.ms(begun) <= requests.outage_until.load(Ordering::Relaxed) =>
            {
                requests.told_of_outage.fetch_add(1, Ordering::Relaxed);
                None
            }
            Ok(Ok(reply)) => Some(format!("{} {}", reply.status, reply.body.trim())),
            Ok(Err(failure)) => Some(failure.to_string()),
            Err(error) => Some(format!("{error:#}")),
        };
        match failure {
            None => drop(requests.answered.fetch_add(1, Ordering::Relaxed)),
            Some(failure) => {
                let text = format!("{name} after {:?}: {failure}", begun.elapsed());
                eprintln!("lost: {text}");
                requests.lost.write().unwrap_or_else(PoisonError::into_inner).push(text);
            }
        }
        pause(Duration::from_millis(random.random_range(0..CLIENT_PAUSE_MS)));
    }
}

/// Time passes: what is tested here is what happens meanwhile.
fn pause(time: Duration) {
    let timeout = nix::poll::PollTimeout::try_from(time.as_millis()).unwrap_or(nix::poll::PollTimeout::MAX);
    // A signal may cut it short.
    nix::poll::poll(&mut [], timeout).unwrap_or_default();
}
