//! The node with containers that are only pretended: the tests play the functions.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use headstart_config::{Cidr, Contract, FreezeBackends, Overload, RequireAuth};
use headstart_ebpf::event::{AUTHENTICATED, EventKind, SynEvent};
use headstart_wire::{Channel, ToAgent};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::sync::watch;

use super::*;
use crate::api::server::Control as _;
use crate::api::{FunctionStatus, FunctionSummary};
use crate::event::{Policy, Rates};
use crate::inject::Resources;
use crate::serve::Doorbell;
use crate::serve::front::{Announce as _, FIRST_FRONT};
use crate::start::{BoxFuture, ControlEnd, Exit, FunctionRuntime, PreparedContainer, Process, StartError};
use crate::syn::RingRecord;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

/// Short for a start that goes by unused, long for one that is confirmed.
const UNUSED_AFTER: Duration = Duration::from_secs(2);

/// The node's budget where it is no matter.
const PLENTY: Rates = Rates { min: 1, max: 128 };

/// A source that the operator allows.
const ALLOWED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A container without anything in it.
struct Hollow(watch::Sender<bool>);

impl Process for Hollow {
    fn release(&self) -> BoxFuture<'_, Result<u64, StartError>> {
        Box::pin(async { Ok(now_ns()) })
    }
    fn exited(&self) -> BoxFuture<'_, Exit> {
        let mut ended = self.0.subscribe();
        Box::pin(async move {
            ended.wait_for(|ended| *ended).await.unwrap();
            Exit { code: Some(0), ..Exit::default() }
        })
    }
    fn freeze(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async { Ok(()) })
    }
    fn thaw(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async { Ok(()) })
    }
    fn terminate(&self) -> BoxFuture<'_, ()> {
        self.0.send_replace(true);
        Box::pin(async {})
    }
    fn remove(&self) -> BoxFuture<'_, Result<(), StartError>> {
        self.0.send_replace(true);
        Box::pin(async { Ok(()) })
    }
    fn directory(&self) -> &std::path::Path {
        std::path::Path::new("")
    }
    fn owns(&self, _pid: i32) -> bool {
        true
    }
}

/// Keeps the functions' ends of the control sockets, oldest first.
#[derive(Default)]
struct Pretended(Mutex<Vec<Channel>>);

impl FunctionRuntime for Pretended {
    fn name(&self) -> &'static str {
        "pretended"
    }
    fn prepare<'a>(&'a self, _instance: &'a str) -> BoxFuture<'a, Result<PreparedContainer, StartError>> {
        let (agent, function) = Channel::pair().unwrap();
        self.0.lock().unwrap().push(function);
        let process = Arc::new(Hollow(watch::Sender::new(false)));
        Box::pin(async { Ok(PreparedContainer { control: ControlEnd::Connected(agent), process }) })
    }
    fn adopt<'a>(&'a self, _instance: &'a str) -> BoxFuture<'a, Result<Arc<dyn Process>, StartError>> {
        Box::pin(async { Ok(Arc::new(Hollow(watch::Sender::new(false))) as Arc<dyn Process>) })
    }
}

/// A running node with two functions, each with one parked container.
struct Bed {
    node: NodeHandle,
    /// Of the first function.
    runtime: Arc<Pretended>,
    page: PrometheusHandle,
}

impl Bed {
    async fn new(unused_after: Duration, global: Rates, page: PrometheusHandle) -> Self {
        let (orders, runtime) = service("orders", unused_after);
        let (other, _) = service("other", unused_after);
        let admission = Admission::new(global, global, unused_after);
        let allow = AllowList::new(&[Cidr { address: ALLOWED.into(), bits: 32 }]);
        let (node, handle) = Node::new(
            vec![orders, other],
            admission,
            allow,
            None,
            Arc::default(),
            DescriptorStore::default(),
        );
        tokio::spawn(node.run());
        let bed = Self { node: handle, runtime, page };
        bed.until(async || bed.node.status(None).await.iter().all(|function| function.prepared == 1)).await;
        bed
    }

    /// Of the first function.
    async fn status(&self) -> FunctionStatus {
        self.node.status(None).await.remove(0)
    }

    /// The value of a series, as it stands on the page.
    async fn value(&self, series: &str) -> f64 {
        self.node.scrape().await;
        let page = self.page.render();
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in\n{page}")).parse().unwrap()
    }

    /// Asks again and again: the pages that show it do not report changes.
    async fn until(&self, condition: impl AsyncFn() -> bool) {
        let asked = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LIMIT, asked).await.unwrap();
    }

    async fn is(&self, series: &str, value: f64) {
        self.until(async || self.value(series).await == value).await;
    }

    /// What an instance says, the first container being number 0.
    fn say(&self, instance: usize, messages: &[ToAgent]) {
        let channels = self.runtime.0.lock().unwrap();
        for message in messages {
            channels[instance].send(message, &[]).unwrap();
        }
    }

    /// Lets a start go by unused, so that the budgets have something to gain; then all is as before.
    async fn waste_a_start(&self) {
        assert!(self.node.seen(&RingRecord::Event(syn(1))));
        self.is(UNUSED, 1.0).await;
        assert_eq!((self.value(OWN_BUDGET).await, self.value(GLOBAL_BUDGET).await), (8.0, 64.0));
        assert_eq!(self.status().await.instances, 1, "it runs on all the same");
        self.say(0, &[HELLO, ACK, READY]);
        self.until(async || self.status().await.state == FunctionSummary::Ready).await;
        assert!(self.node.operate("orders".into(), Operation::Stop).await);
        self.until(async || {
            self.status().await.state == FunctionSummary::Cold && self.status().await.prepared == 1
        })
        .await;
    }
}

fn service(name: &str, unused_after: Duration) -> (Service, Arc<Pretended>) {
    let runtime = Arc::new(Pretended::default());
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let starts = Rates { min: 1, max: 16 };
    let service = Service {
        name: name.into(),
        listen: listener.local_addr().unwrap(),
        id: None,
        require_auth: RequireAuth::No,
        steered: false,
        policy: Policy {
            prepared: 1,
            concurrency: None,
            min_ready: 0,
            standby: 0,
            max_instances: 16,
            queue_timeout: LIMIT,
            freeze_after: None,
            hibernate_after: None,
            stop_after: None,
            init_timeout: LIMIT,
            start_attempts: 3,
            cooldown: LIMIT,
            retry_max: LIMIT,
            unused_after,
            starts,
        },
        overload: Overload::Http503,
        freeze_backends: FreezeBackends::Keep,
        stop_grace: LIMIT,
        contract: Contract::Headstart,
        runtime: Arc::clone(&runtime) as Arc<dyn FunctionRuntime>,
        doorbell: Arc::default(),
        resources: Resources {
            function: name.into(),
            listener: Arc::new(listener.into()),
            concurrency: None,
            pools: Vec::new(),
            by_socket: false,
            ports: Vec::new(),
            tls: headstart_injector::TlsMode::Relay,
        },
        fingerprint: String::new(),
    };
    (service, runtime)
}

/// Runs a test on one thread, with metrics of its own.
fn run<F: Future<Output = ()>>(unused_after: Duration, global: Rates, test: impl FnOnce(Bed) -> F) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let page = recorder.handle();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async { test(Bed::new(unused_after, global, page).await).await });
    });
}

fn event(client: u16, kind: EventKind, flags: u8) -> SynEvent {
    let isn = if kind == EventKind::Syn { 7 } else { 0 };
    SynEvent {
        timestamp_ns: now_ns(),
        function: 0,
        isn,
        src: Ipv4Addr::new(198, 51, 100, 7).to_ipv6_mapped().octets(),
        dst: Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets(),
        src_port: client,
        dst_port: 80,
        kind: kind as u8,
        ip_version: 4,
        flags,
        pad: 0,
    }
}

fn syn(client: u16) -> SynEvent {
    event(client, EventKind::Syn, 0)
}

#[test]
fn a_client_of_a_front_is_one_start_though_the_sensors_see_its_connection() {
    run(LIMIT, PLENTY, async |bed| {
        let (client, from) = ("192.0.2.200:1".parse().unwrap(), SocketAddr::from(([198, 51, 100, 7], 4000)));
        bed.node.announce(0, Trigger::Sni, client, from, None);
        assert!(bed.node.seen(&RingRecord::Event(event(4000, EventKind::Lookup, 0))));
        assert_eq!(bed.status().await.instances, 1);
        let seen = |kind| format!("headstart_syn_events_total{{function=\"orders\",kind=\"{kind}\"}}");
        assert_eq!(bed.value(&seen("sni")).await, 1.0);
        let suppressed = "headstart_syn_suppressed_total{reason=\"duplicate\"}";
        assert_eq!(bed.value(suppressed).await, 1.0);
        assert_eq!(bed.value(SPENT).await, 1.0, "its client has no key");
    });
}

#[test]
fn a_right_guess_and_what_its_client_then_names_are_one_start() {
    run(LIMIT, PLENTY, async |bed| {
        let doorbell = Arc::new(Doorbell::default());
        doorbell.serve(0);
        let of_front = SynEvent { function: FIRST_FRONT, ..syn(4000) };
        assert!(!bed.node.seen(&RingRecord::Event(of_front)), "nothing is known of its source");
        bed.node.guesses().learn(FIRST_FRONT, of_front.source().ip(), &doorbell);
        assert!(bed.node.seen(&RingRecord::Event(of_front)));
        let guess = bed.node.guesses().named(of_front.source());
        let from = SocketAddr::from(([127, 0, 0, 1], 5000));
        bed.node.announce(0, Trigger::Sni, of_front.source(), from, guess);
        let mut connects = event(5000, EventKind::Lookup, 0);
        connects.src = Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
        assert!(bed.node.seen(&RingRecord::Event(connects)));
        assert_eq!(bed.status().await.instances, 1);
        let seen = |kind| format!("headstart_syn_events_total{{function=\"orders\",kind=\"{kind}\"}}");
        assert_eq!(bed.value(&seen("syn-guess")).await, 1.0);
        let duplicates = "headstart_syn_suppressed_total{reason=\"duplicate\"}";
        assert_eq!(bed.value(duplicates).await, 2.0, "its name, and its connection");
    });
}

const HELLO: ToAgent = ToAgent::Hello { shim: String::new(), hello_ns: 1 };
const ACK: ToAgent = ToAgent::Ack { injected_ns: 2 };
const READY: ToAgent = ToAgent::Ready { ready_ns: 3 };
const SERVED: ToAgent = ToAgent::Served { accept_ns: 4, first_response_ns: 5 };

const GLOBAL_BUDGET: &str = "headstart_syn_budget_starts{scope=\"global\"}";
const OWN_BUDGET: &str = "headstart_syn_budget_starts{scope=\"function\",function=\"orders\"}";
const SPENT: &str = "headstart_syn_budget_spent_total{function=\"orders\"}";
const UNUSED: &str = "headstart_starts_unused_total{function=\"orders\"}";

#[test]
fn one_syn_that_both_sensors_see_is_one_start_and_one_duplicate() {
    run(LIMIT, PLENTY, async |bed| {
        assert!(bed.node.seen(&RingRecord::Event(syn(4000))));
        assert!(bed.node.seen(&RingRecord::Event(event(4000, EventKind::Lookup, 0))));
        assert!(bed.node.seen(&RingRecord::Event(event(4001, EventKind::Lookup, 0))));
        assert_eq!(bed.status().await.instances, 1);
        let seen = |kind| format!("headstart_syn_events_total{{function=\"orders\",kind=\"{kind}\"}}");
        assert_eq!(bed.value(&seen("syn")).await, 1.0);
        assert_eq!(bed.value(&seen("lookup")).await, 1.0, "that of another client");
        for reason in ["duplicate", "starting"] {
            assert_eq!(
                bed.value(&format!("headstart_syn_suppressed_total{{reason=\"{reason}\"}}")).await,
                1.0
            );
        }
        bed.node.shutdown().await;
    });
}

#[test]
fn a_start_that_no_connection_follows_halves_the_budgets_and_a_first_answer_adds_to_them() {
    run(UNUSED_AFTER, PLENTY, async |bed| {
        assert_eq!((bed.value(SPENT).await, bed.value(UNUSED).await), (0.0, 0.0));
        bed.waste_a_start().await;
        assert!(bed.node.seen(&RingRecord::Event(syn(2))));
        bed.say(1, &[HELLO, ACK, READY, SERVED]);
        bed.is(OWN_BUDGET, 9.0).await;
        assert_eq!((bed.value(GLOBAL_BUDGET).await, bed.value(UNUSED).await), (65.0, 1.0));
        assert_eq!(bed.value(SPENT).await, 2.0);
        bed.node.shutdown().await;
    });
}

#[test]
fn a_connection_in_the_accept_queue_confirms_a_start_before_the_function_is_ready() {
    run(UNUSED_AFTER, PLENTY, async |bed| {
        bed.waste_a_start().await;
        assert!(bed.node.seen(&RingRecord::Event(syn(2))));
        let _client = std::net::TcpStream::connect(bed.status().await.listen).unwrap();
        bed.is(OWN_BUDGET, 9.0).await;
        assert_eq!((bed.value(GLOBAL_BUDGET).await, bed.value(UNUSED).await), (65.0, 1.0));
        assert_eq!(bed.status().await.state, FunctionSummary::Starting);
        bed.node.shutdown().await;
    });
}

#[test]
fn every_kind_of_event_starts_a_function_and_is_the_trigger_of_its_timeline() {
    for (kind, flags, trigger) in [
        (EventKind::Syn, 0, "syn"),
        (EventKind::Syn, AUTHENTICATED, "syn"),
        (EventKind::Lookup, 0, "lookup"),
        (EventKind::Knock, AUTHENTICATED, "knock"),
    ] {
        run(LIMIT, PLENTY, async |bed| {
            let event = event(4000, kind, flags);
            assert!(bed.node.seen(&RingRecord::Event(event)));
            bed.say(0, &[HELLO, ACK, READY]);
            bed.until(async || bed.status().await.state == FunctionSummary::Ready).await;
            let labels = format!("function=\"orders\",trigger=\"{trigger}\",outcome=\"ready\"");
            assert_eq!(bed.value(&format!("headstart_coldstarts_total{{{labels}}}")).await, 1.0);
            bed.node.shutdown().await;
        });
    }
}

#[test]
fn a_flood_fills_half_of_the_inbox_and_clients_with_a_key_the_rest() {
    let (sender, _inbox) = mpsc::channel(INBOX_MAX);
    let node = NodeHandle { inbox: sender, allow: Arc::default(), guesses: Arc::default() };
    let taken = |flags| {
        (0..10_000u16)
            .filter(|client| node.seen(&RingRecord::Event(event(*client, EventKind::Syn, flags))))
            .count()
    };
    assert_eq!(taken(0), INBOX_MAX / 2);
    assert_eq!(taken(AUTHENTICATED), INBOX_MAX / 2);
    assert_eq!((taken(0), taken(AUTHENTICATED)), (0, 0));
}

#[test]
fn a_key_and_an_allowed_source_start_what_the_budget_refuses_to_others() {
    let one = Rates { min: 1, max: 1 };
    let allowed = SynEvent { src: ALLOWED.to_ipv6_mapped().octets(), ..syn(3) };
    for trusted in [allowed, event(3, EventKind::Syn, AUTHENTICATED)] {
        run(LIMIT, one, async |bed| {
            assert!(bed.node.seen(&RingRecord::Event(SynEvent { function: 1, ..syn(1) })));
            assert!(bed.node.seen(&RingRecord::Event(syn(2))));
            assert_eq!(bed.value("headstart_syn_suppressed_total{reason=\"budget\"}").await, 1.0);
            assert_eq!(bed.status().await.instances, 0);
            assert!(bed.node.seen(&RingRecord::Event(trusted)));
            assert_eq!(bed.status().await.instances, 1);
            assert_eq!(bed.value(SPENT).await, 0.0);
            bed.node.shutdown().await;
        });
    }
}

/// Its address may be forged.
#[test]
fn an_allowed_source_has_a_budget_of_its_own() {
    let allowed = |client| SynEvent { src: ALLOWED.to_ipv6_mapped().octets(), ..syn(client) };
    run(LIMIT, Rates { min: 1, max: 1 }, async |bed| {
        assert!(bed.node.seen(&RingRecord::Event(SynEvent { function: 1, ..allowed(1) })));
        assert!(bed.node.seen(&RingRecord::Event(allowed(2))));
        assert_eq!(bed.value("headstart_syn_suppressed_total{reason=\"budget\"}").await, 1.0);
        assert_eq!(bed.status().await.instances, 0);
        // Nothing of it comes from the budget of others.
        assert!(bed.node.seen(&RingRecord::Event(syn(3))));
        assert_eq!(bed.status().await.instances, 1);
        bed.node.shutdown().await;
    });
}

#[test]
fn an_event_of_an_unknown_kind_or_function_changes_nothing() {
    run(LIMIT, PLENTY, async |bed| {
        assert!(!bed.node.seen(&RingRecord::Event(SynEvent { kind: 9, ..syn(4000) })));
        assert!(bed.node.seen(&RingRecord::Event(SynEvent { function: 2, ..syn(4000) })));
        assert!(bed.node.seen(&RingRecord::Event(SynEvent { function: u32::MAX, ..syn(4000) })));
        let status = bed.status().await;
        assert_eq!((status.state, status.prepared), (FunctionSummary::Cold, 1));
        assert_eq!(bed.value("headstart_syn_lost_total{reason=\"record_kind\"}").await, 1.0);
        bed.node.shutdown().await;
    });
}

#[tokio::test(start_paused = true)]
async fn the_loop_itself_tells_the_watchdog_that_it_runs() {
    let timeout = Duration::from_secs(9);
    let (manager, watchdog) = Watchdog::with_manager(timeout);
    let pings = || {
        let mut bytes = [0; 64];
        let messages =
            std::iter::from_fn(|| manager.recv(&mut bytes).ok().map(|length| bytes[..length].to_vec()));
        messages.inspect(|message| assert_eq!(message, b"WATCHDOG=1")).count()
    };
    let node = |watchdog| {
        let admission = Admission::new(PLENTY, PLENTY, UNUSED_AFTER);
        let store = DescriptorStore::default();
        let (mut node, handle) =
            Node::new(Vec::new(), admission, AllowList::default(), None, Arc::default(), store);
        node.set_watchdog(watchdog);
        (Box::pin(node.run()), handle)
    };
    let (mut serving, handle) = node(Some(watchdog));
    for expected in [4, 3] {
        assert!(tokio::time::timeout(timeout + Duration::from_millis(100), &mut serving).await.is_err());
        assert_eq!(pings(), expected);
    }
    // The loop does nothing, but the runtime goes on.
    tokio::time::sleep(10 * timeout).await;
    assert_eq!(pings(), 0);
    assert!(tokio::time::timeout(timeout / 9, &mut serving).await.is_err());
    assert_eq!(pings(), 1, "no pings are made up for");
    handle.shutdown().await;
    serving.await;

    let (mut serving, _handle) = node(None);
    assert!(tokio::time::timeout(timeout, &mut serving).await.is_err());
    assert_eq!(pings(), 0);
}
