//! What happens, in a random order.

use std::fmt::{Display, Formatter};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Result;
use headstart_integration_tests::lab::flood::{Flood, FloodProcess};
use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::stage::Stage;
use crate::{Requests, pause};

/// The longest pause between two events.
const PAUSE_MS: u64 = 1500;
/// How long a function misbehaves, at most, and a flood lasts, and the database is away.
const MISBEHAVES_MS: u64 = 3000;
const FLOOD_MS: u64 = 1500;
const OUTAGE_MS: u64 = 2000;
/// Clients of a function that misbehaves, which want nothing.
const CALLS: usize = 5;
const CALL_LIMIT: Duration = Duration::from_millis(200);

/// What can happen, and how often of 100.
#[derive(Clone, Copy)]
enum Event {
    Freeze,
    Stop,
    Wake,
    Misbehave,
    Flood,
    Reload,
    Outage,
}

const EVENTS: [(Event, &str, u32); 7] = [
    (Event::Freeze, "frozen", 22),
    (Event::Stop, "stopped", 22),
    (Event::Wake, "woken", 10),
    (Event::Misbehave, "misbehaved", 30),
    (Event::Flood, "floods", 6),
    (Event::Reload, "reloads", 7),
    (Event::Outage, "outages", 3),
];

/// How often each happened.
#[derive(Default)]
pub(crate) struct Events {
    counts: [u64; EVENTS.len()],
}

impl Events {
    /// One event after another until then; functions that misbehave and floods are under way meanwhile.
    pub(crate) fn go_on(
        &mut self,
        stage: &mut Stage,
        requests: &Requests,
        random: &mut StdRng,
        until: Instant,
    ) -> Result<()> {
        let mut misbehaving: Vec<(Instant, String)> = Vec::new();
        let mut flood: Option<FloodProcess> = None;
        while Instant::now() < until {
            pause(Duration::from_millis(random.random_range(0..PAUSE_MS)));
            let (over, under_way) = misbehaving.into_iter().partition(|(end, _)| *end <= Instant::now());
            misbehaving = under_way;
            over.iter().try_for_each(|(_, name): &(Instant, String)| stage.end(name))?;
            let number = draw(random);
            let Some((event, ..)) = EVENTS.get(number) else { continue };
            match event {
                Event::Freeze => stage.ask(&some(&stage.functions, random), "freeze")?,
                // The server that knows nothing of the agent cuts its clients off when it is asked to stop.
                Event::Stop => match some(&stage.functions, random).as_str() {
                    "unchanged" => continue,
                    name => stage.ask(name, "stop")?,
                },
                Event::Wake => stage.ask(&some(&stage.functions, random), "wake")?,
                Event::Misbehave => {
                    let name = some(&stage.hostile, random);
                    if misbehaving.iter().any(|(_, other)| *other == name) {
                        continue;
                    }
                    stage.misbehave(&name)?;
                    let lasting = Duration::from_millis(random.random_range(200..MISBEHAVES_MS));
                    misbehaving.push((Instant::now() + lasting, name));
                }
                Event::Flood => {
                    let lasting = Duration::from_millis(random.random_range(100..FLOOD_MS));
                    let ports: Vec<u16> = stage.functions.iter().map(|(_, function)| function.port).collect();
                    drop(flood.replace(Flood::new(&stage.attack, &ports)?.lasting(lasting).start()?));
                }
                Event::Reload => stage.reload()?,
                Event::Outage => {
                    requests.outage(true);
                    stage.postgres.stop()?;
                    pause(Duration::from_millis(random.random_range(0..OUTAGE_MS)));
                    stage.postgres.start()?;
                    requests.outage(false);
                }
            }
            if let Some(count) = self.counts.get_mut(number) {
                *count += 1;
            }
        }
        misbehaving.iter().try_for_each(|(_, name)| stage.end(name))
    }
}

impl Stage {
    fn ask(&self, name: &str, operation: &str) -> Result<()> {
        // What cannot be done now, to freeze what is cold for instance, is said and is no failure.
        self.agent.ask("POST", &format!("/api/v1/functions/{name}/{operation}")).map(drop)
    }

    fn misbehave(&self, name: &str) -> Result<()> {
        self.ask(name, "wake")?;
        let Some((_, function)) = self.hostile.iter().find(|(other, _)| other == name) else { return Ok(()) };
        let target = self.node.link.host(function.port);
        for _ in 0..CALLS {
            // It may be refused, which is its affair.
            let _ = self.node.client.enter(|| TcpStream::connect_timeout(&target, CALL_LIMIT).map(drop))?;
        }
        Ok(())
    }
}

impl Display for Events {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        let counts = self.counts.iter().zip(EVENTS).map(|(count, (_, name, _))| format!("{count} {name}"));
        formatter.write_str(&counts.collect::<Vec<_>>().join(", "))
    }
}

/// The number of an event, as likely as it says.
fn draw(random: &mut StdRng) -> usize {
    let all: u32 = EVENTS.iter().map(|(_, _, weight)| weight).sum();
    let mut left = random.random_range(0..all);
    EVENTS
        .iter()
        .position(|(_, _, weight)| left.checked_sub(*weight).map(|less| left = less).is_none())
        .unwrap_or(0)
}

fn some<T>(of: &[(String, T)], random: &mut StdRng) -> String {
    of.get(random.random_range(0..of.len())).map(|(name, _)| name.clone()).unwrap_or_default()
}
