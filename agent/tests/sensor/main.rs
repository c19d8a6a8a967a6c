//! The kernel half on real interfaces and sockets, each test in a network namespace of its own.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod agent;
mod bed;
mod lookup;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;

use aya::maps::{Array, HashMap, MapData};
use bed::{Neighbour, config, ip, listener, map, named, pin_dir, pinned, pins, route, shown, start, until};
use headstart_agent::syn::{
    AttachedSensor, Kernel, KernelProgram, Mode, PinError, Pins, RingRecord, Route, Routes, RunningSensors,
    read,
};
use headstart_config::{Interfaces, RequireAuth};
use headstart_ebpf::auth::{EPOCH_SECONDS, epoch};
use headstart_ebpf::event::EventKind;
use headstart_ebpf::maps::{
    FUNCTION_AUTH_WAKE, FUNCTION_NONE, FUNCTION_OPTION, FUNCTION_WARM, FUNCTIONS, FunctionEntry, KEYS,
    KeySlot, OPENED, OpenedKey, PORTS, PROGRAM_GATE, PROGRAM_LOOKUP, PROGRAM_TCX, PROGRAM_XDP, PortKey,
    SETTINGS, Settings,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use tokio::sync::mpsc;

/// The first thing that comes out of the rings.
pub(crate) async fn first(sensing: RunningSensors) -> RingRecord {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let reader = tokio::spawn(read(sensing.watching.rings, move |seen| {
        let _ = sender.send(seen);
    }));
    let seen = tokio::time::timeout(std::time::Duration::from_secs(20), receiver.recv()).await;
    reader.abort();
    seen.expect("something is seen").unwrap()
}

fn modes(sensing: &RunningSensors) -> Vec<(String, Mode)> {
    sensing.attached.borrow().iter().map(|row| (row.interface.clone(), row.mode)).collect()
}

/// Asks for a connection over loopback; whether it comes about does not matter.
fn ask(address: SocketAddr) {
    let _ = TcpStream::connect(address);
}

#[test]
fn the_ladder_ends_on_the_best_rung_that_holds() {
    bed::run("the_ladder_ends_on_the_best_rung_that_holds", || async {
        ip("link add veth0 type veth peer name veth1");
        let both = named(&["veth0", "lo"]);
        let first = start(None, &[], &config(""), &both, false);
        assert_eq!(modes(&first), [("lo".into(), Mode::Generic), ("veth0".into(), Mode::Native)]);
        // The slots are taken now.
        let second = start(None, &[], &config(""), &both, false);
        assert_eq!(modes(&second), [("lo".into(), Mode::Tcx), ("veth0".into(), Mode::Tcx)]);
        drop((first, second));
        assert!(!shown("veth0").contains("xdp"), "{}", shown("veth0"));
    });
}

#[test]
fn a_syn_is_seen_and_a_warm_functions_is_not() {
    bed::run("a_syn_is_seen_and_a_warm_functions_is_not", || async {
        let neighbour = Neighbour::new();
        let address: SocketAddr = "10.99.0.1:8081".parse().unwrap();
        let (fd, _listener) = listener("0.0.0.0:8081");
        let open = route("0.0.0.0:8081".parse().unwrap(), &fd);
        for take_slot in [false, true] {
            // Another program on the interface leaves only the last rung.
            let taken = take_slot.then(|| start(None, &[], &config(""), &named(&["near0"]), false));
            let mut sensing =
                start(None, std::slice::from_ref(&open), &config(""), &named(&["near0"]), false);
            let mode = if take_slot { Mode::Tcx } else { Mode::Native };
            assert_eq!(modes(&sensing), [("near0".into(), mode)]);
            sensing.sensor.warm(0, true).unwrap();
            neighbour.connect(address);
            sensing.sensor.warm(0, false).unwrap();
            let client = neighbour.connect(address);
            let RingRecord::Event(event) = first(sensing).await else { panic!("no event") };
            assert_eq!(event.kind(), Some(EventKind::Syn));
            assert_eq!(event.source(), client, "the first one was warm");
            drop(taken);
        }
    });
}

#[test]
fn pinned_sensors_see_without_an_agent_and_the_next_one_takes_them_over() {
    bed::run("pinned_sensors_see_without_an_agent_and_the_next_one_takes_them_over", || async {
        let address: SocketAddr = "127.0.0.1:8081".parse().unwrap();
        let (fd, _listener) = listener("127.0.0.1:8081");
        let other = Route { listen: "127.0.0.1:8082".parse().unwrap(), ..route(address, &fd) };
        let start = |keep, routes: &[Route]| start(pins(keep), routes, &config(""), &named(&["lo"]), true);

        let first_agent = start(true, &[other, route(address, &fd)]);
        let error = Pins::open(pin_dir(), true).err().unwrap();
        assert!(matches!(error, PinError::Locked(_)) && error.to_string().contains("pin_dir"), "{error}");
        drop(first_agent);
        assert_eq!(pinned("links"), ["lookup", "xdp-generic-1"]);
        let before = shown("lo");
        assert!(before.contains("xdpgeneric"), "{before}");
        ask(address);

        let second = start(true, &[route(address, &fd)]);
        assert_eq!(modes(&second), [("netns".into(), Mode::Lookup), ("lo".into(), Mode::Generic)]);
        assert_eq!(pinned("links"), ["lookup", "xdp-generic-1"]);
        assert_ne!(shown("lo"), before, "another program is behind the link");
        let functions: HashMap<_, PortKey, FunctionEntry> =
            HashMap::try_from(aya::maps::Map::HashMap(MapData::from_pin(map(FUNCTIONS)).unwrap())).unwrap();
        let entries: Vec<_> = functions.iter().map(Result::unwrap).collect();
        let entry = FunctionEntry { function: 0, flags: 0 };
        assert_eq!(entries, [(PortKey::listener(address), entry)], "the functions of this agent only");
        assert_eq!(first(second).await, RingRecord::Stale);

        // What is not to be kept is taken over, and then leaves nothing.
        let last = start(false, &[route(address, &fd)]);
        assert_eq!(modes(&last), [("netns".into(), Mode::Lookup), ("lo".into(), Mode::Generic)]);
        assert!(pinned("links").is_empty() && !pinned("").iter().any(|name| name.starts_with("maps-")));
        assert!(shown("lo").contains("xdpgeneric"));
        ask(address);
        assert!(matches!(first(last).await, RingRecord::Event(_)));
        bed::bare("lo").await;
        Pins::open(pin_dir(), false).unwrap().clear().unwrap();
        assert!(!pin_dir().exists());
    });
}

#[test]
fn a_pin_of_an_interface_that_is_gone_is_replaced() {
    bed::run("a_pin_of_an_interface_that_is_gone_is_replaced", || async {
        ip("link add late0 index 77 type veth peer name late1");
        let start = || start(pins(true), &[], &config(""), &named(&["late0"]), false);
        drop(start());
        assert_eq!(pinned("links").len(), 1);
        ip("link del late0");
        ip("link add late0 index 77 type veth peer name late1");
        assert!(!shown("late0").contains("xdp"));
        drop(start());
        assert!(shown("late0").contains("xdp"), "{}", shown("late0"));
        // An agent that no longer watches there removes it.
        drop(bed::start(pins(true), &[], &config(""), &named(&["lo"]), false));
        assert_eq!(pinned("links"), ["xdp-generic-1"]);
        bed::bare("late0").await;
    });
}

#[test]
fn maps_of_another_layout_are_removed_after_the_switch() {
    bed::run("maps_of_another_layout_are_removed_after_the_switch", || async {
        std::fs::create_dir_all(pin_dir().join("maps-0000000000000000")).unwrap();
        drop(start(pins(true), &[], &config(""), &named(&["lo"]), false));
        let layouts: Vec<_> = pinned("").into_iter().filter(|name| name.starts_with("maps-")).collect();
        assert_eq!(layouts.len(), 1);
        assert_ne!(layouts[0], "maps-0000000000000000");
    });
}

#[test]
fn interfaces_are_followed_as_they_come_and_go_without_any_capability() {
    bed::run("interfaces_are_followed_as_they_come_and_go_without_any_capability", || async {
        let sensing = start(pins(true), &[], &config(""), &named(&["late0", "lo"]), false);
        let mut attached = sensing.attached.clone();
        assert_eq!(modes(&sensing), [("lo".into(), Mode::Generic)]);
        // The program is loaded: attaching it takes no privilege (since Linux 5.19).
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, none).unwrap();
        let task = tokio::spawn(sensing.watching.background.run());
        for _ in 0..2 {
            ip("link add late0 type veth peer name late1");
            until(&mut attached, "late0", Mode::Native, true).await;
            assert_eq!(pinned("links").len(), 2);
            ip("link del late0");
            until(&mut attached, "late0", Mode::Native, false).await;
            assert_eq!(pinned("links"), ["xdp-generic-1"]);
        }
        task.abort();
    });
}

#[test]
fn auto_follows_the_default_route_and_never_a_port_of_a_master() {
    bed::run("auto_follows_the_default_route_and_never_a_port_of_a_master", || async {
        let sensing = start(None, &[], &config(""), &Interfaces::Auto, false);
        let mut attached = sensing.attached.clone();
        assert!(attached.borrow().is_empty());
        let task = tokio::spawn(sensing.watching.background.run());
        ip("link add br0 type bridge");
        ip("link add port0 type veth peer name port1");
        ip("link set port0 master br0 up");
        ip("link set br0 up");
        ip("link add up0 type veth peer name up1");
        ip("link set up0 up");
        ip("route add default dev port0 metric 1");
        ip("route add default dev br0 metric 2");
        ip("route add default dev up0 metric 3");
        until(&mut attached, "up0", Mode::Native, true).await;
        until(&mut attached, "br0", Mode::Generic, true).await;
        let rows: Vec<AttachedSensor> = attached.borrow().clone();
        assert!(rows.iter().all(|row| row.interface != "port0" && row.interface != "up1"), "{rows:?}");
        ip("route del default dev up0");
        until(&mut attached, "up0", Mode::Native, false).await;
        bed::bare("up0").await;
        task.abort();
    });
}

#[test]
fn an_interface_that_is_not_there_costs_only_itself() {
    bed::run("an_interface_that_is_not_there_costs_only_itself", || async {
        let sensing = start(None, &[], &config(""), &named(&["nowhere0", "lo"]), false);
        assert_eq!(modes(&sensing), [("lo".into(), Mode::Generic)]);
    });
}

#[test]
fn a_program_that_is_refused_costs_only_itself() {
    bed::run("a_program_that_is_refused_costs_only_itself", || async {
        ip("link add veth0 type veth peer name veth1");
        let interfaces = named(&["veth0"]);
        let mut without_xdp = Kernel::load(&without(&[PROGRAM_XDP]), None).unwrap();
        assert_eq!(without_xdp.refused().keys().collect::<Vec<_>>(), [&KernelProgram::Xdp]);
        without_xdp.attach_lookup().unwrap();
        let sensing = without_xdp.watch(&Routes::new(), &config("").syn, &interfaces).unwrap();
        assert_eq!(modes(&sensing), [("netns".into(), Mode::Lookup), ("veth0".into(), Mode::Tcx)]);
        drop(sensing);

        let rest = without(&[PROGRAM_TCX, PROGRAM_LOOKUP, PROGRAM_GATE]);
        let mut only_xdp = Kernel::load(&rest, None).unwrap();
        assert_eq!(only_xdp.refused().len(), 3);
        assert!(only_xdp.attach_lookup().is_err() && !only_xdp.listeners().can_steer());
        let (fd, _listener) = listener("127.0.0.1:0");
        assert!(only_xdp.listeners().guard(&fd).is_err());
        let sensing =
            only_xdp.watch(&Routes::new(), &config("ignore = [\"10.0.0.0/8\"]").syn, &interfaces).unwrap();
        assert_eq!(modes(&sensing), [("veth0".into(), Mode::Native)]);
        drop(sensing);

        let none = Kernel::load(&without(&KernelProgram::ALL.map(KernelProgram::program)), None).unwrap();
        let sensing = none.watch(&Routes::new(), &config("").syn, &interfaces).unwrap();
        assert_eq!(modes(&sensing), [], "and nothing crashed");
    });
}

/// The object, in which programs have other names: as good as refused.
fn without(programs: &[&str]) -> Vec<u8> {
    let mut object = headstart_ebpf::OBJECT.to_vec();
    for name in programs.iter().map(|name| name.as_bytes()) {
        for at in 0..object.len() - name.len() {
            if object[at..].starts_with(name) {
                object[at] = b'x';
            }
        }
    }
    object
}

#[test]
fn the_maps_say_who_is_meant_and_under_which_rules() {
    bed::run("the_maps_say_who_is_meant_and_under_which_rules", || async {
        let (fd, _listener) = listener("127.0.0.1:0");
        let listen: SocketAddr = "0.0.0.0:8443".parse().unwrap();
        let named_route = |id, auth| Route { id: Some(id), auth, steered: true, ..route(listen, &fd) };
        let routes = [named_route(7, RequireAuth::No), named_route(8, RequireAuth::Wake)];
        let syn = "events = { source = 5, function = 10, global = 100 }\nignore = [\"10.0.0.0/8\"]";
        let mut sensing = start(pins(true), &routes, &config(syn), &named(&["lo"]), true);
        let functions: HashMap<_, PortKey, FunctionEntry> =
            HashMap::try_from(aya::maps::Map::HashMap(MapData::from_pin(map(FUNCTIONS)).unwrap())).unwrap();
        let port = PortKey::any(8443);
        assert_eq!(functions.get(&port, 0).unwrap().flags, FUNCTION_NONE | FUNCTION_OPTION);
        sensing.sensor.warm(1, true).unwrap();
        for key in [port.with_id(8), PortKey::id(8)] {
            let entry = functions.get(&key, 0).unwrap();
            assert_eq!((entry.function, entry.flags & FUNCTION_WARM), (1, FUNCTION_WARM));
        }
        assert_eq!(functions.get(&port.with_id(7), 0).unwrap().flags & FUNCTION_WARM, 0);
        assert_eq!(functions.iter().count(), 5);

        let array = |name| aya::maps::Map::Array(MapData::from_pin(map(name)).unwrap());
        let ports: Array<_, u64> = Array::try_from(array(PORTS)).unwrap();
        assert_eq!(ports.iter().map(Result::unwrap).map(u64::count_ones).sum::<u32>(), 1);
        assert_eq!(ports.get(&(8443 / 64), 0).unwrap(), 1 << (8443 % 64));
        let settings: Array<_, Settings> = Array::try_from(array(SETTINGS)).unwrap();
        let settings = settings.get(&0, 0).unwrap();
        let unix = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!((epoch(unix - EPOCH_SECONDS)..=epoch(unix)).contains(&settings.epoch));
        assert_eq!((settings.source_limit, settings.function_interval_ns), (5, 100_000_000));
        assert!(settings.seed != 0 && settings.flags == 3, "sources and the lobby are there");
        drop(sensing);
        drop(start(pins(true), &routes, &config(""), &named(&["lo"]), true));
        let next: Array<_, Settings> = Array::try_from(array(SETTINGS)).unwrap();
        let next = next.get(&0, 0).unwrap();
        assert_eq!((next.seed, next.flags), (settings.seed, 0), "what is remembered needs its seed");
    });
}

#[test]
fn functions_change_while_the_programs_run() {
    bed::run("functions_change_while_the_programs_run", || async {
        let (fd, _listener) = listener("127.0.0.1:0");
        let at = |port: u16| route(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), &fd);
        let mut sensing =
            start(pins(true), &[at(1000), at(2000), at(3000)], &config(""), &named(&["lo"]), true);
        let sensor = &mut sensing.sensor;
        let functions: HashMap<_, PortKey, FunctionEntry> =
            HashMap::try_from(aya::maps::Map::HashMap(MapData::from_pin(map(FUNCTIONS)).unwrap())).unwrap();
        let opened = aya::maps::Map::LruHashMap(MapData::from_pin(map(OPENED)).unwrap());
        let mut opened: HashMap<_, OpenedKey, u64> = HashMap::try_from(opened).unwrap();
        for function in 0..3 {
            sensor.warm(function, true).unwrap();
            opened.insert(OpenedKey { network: [0; 16].into(), function, pad: 0 }, 1, 0).unwrap();
        }
        let proved = |opened: &HashMap<_, OpenedKey, u64>| {
            let mut numbers: Vec<_> = opened.keys().map(|key| key.unwrap().function).collect();
            numbers.sort_unstable();
            numbers
        };
        assert_eq!(proved(&opened), [0, 1, 2]);

        // One stays, one moves, one goes; and one comes.
        let moved = Route { auth: RequireAuth::Wake, ..at(2001) };
        sensor.update(&Routes::from([(0, at(1000)), (1, moved), (3, at(3000))])).unwrap();
        let mut entries: Vec<_> = functions.iter().map(Result::unwrap).collect();
        entries.sort_unstable_by_key(|(_, entry)| entry.function);
        let entry = |function, flags| FunctionEntry { function, flags };
        assert_eq!(
            entries,
            [
                (PortKey::any(1000), entry(0, FUNCTION_WARM)),
                (PortKey::any(2001), entry(1, FUNCTION_WARM | FUNCTION_AUTH_WAKE)),
                (PortKey::any(3000), entry(3, 0)),
            ]
        );
        assert_eq!(proved(&opened), [0], "no client has proved anything to the others");
        let ports: Array<_, u64> =
            Array::try_from(aya::maps::Map::Array(MapData::from_pin(map(PORTS)).unwrap())).unwrap();
        assert_eq!(ports.iter().map(Result::unwrap).map(u64::count_ones).sum::<u32>(), 3);
        sensor.warm(2, false).unwrap();
        sensor.warm(1, false).unwrap();
        assert_eq!(functions.get(&PortKey::any(2001), 0).unwrap(), entry(1, FUNCTION_AUTH_WAKE));
        assert_eq!(functions.iter().count(), 3, "one that is gone does not come back");
    });
}

#[test]
fn keys_are_read_again_and_a_broken_file_changes_nothing() {
    bed::run("keys_are_read_again_and_a_broken_file_changes_nothing", || async {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        let write = |text: &str| {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        let key = |byte: &str| byte.repeat(16);
        write(&format!("1 {}\n", key("01")));
        let syn = format!("key_file = {file:?}");
        let sensing = start(pins(true), &[], &config(&syn), &named(&["lo"]), false);
        let mut keys = sensing.watching.keys;
        let slots: Array<_, KeySlot> =
            Array::try_from(aya::maps::Map::Array(MapData::from_pin(map(KEYS)).unwrap())).unwrap();
        let present = || -> Vec<usize> {
            let slots = slots.iter().map(Result::unwrap).enumerate();
            slots.filter(|(_, slot)| slot.present == 1).map(|(number, _)| number).collect()
        };
        assert_eq!(present(), [1]);
        write(&format!("2 {}\n3 {}\n", key("02"), key("03")));
        assert_eq!(keys.reload().unwrap(), Some(2));
        assert_eq!(present(), [2, 3]);
        assert!(slots.get(&1, 0).unwrap().words == [0, 0], "a key that is gone is wiped");
        write("2 nonsense\n");
        let error = keys.reload().unwrap_err().to_string();
        assert!(error.contains("the keys stay as they were"), "{error}");
        assert_eq!(present(), [2, 3]);
        let words = u64::from_le_bytes([2; 8]);
        assert!(slots.get(&2, 0).unwrap().words == [words, words]);
    });
}

#[test]
fn without_the_kernels_consent_there_is_an_error_and_no_crash() {
    let error = Kernel::load(b"not an object, but long enough to be looked at as if it were one", None);
    assert!(error.is_err());
}

/// Keeps a listener's descriptor alive for the map.
pub(crate) type Listener = Arc<std::os::fd::OwnedFd>;
