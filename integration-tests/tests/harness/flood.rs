//! A flood arrives, its answers stay inside, and it ends.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use headstart_integration_tests::lab::flood::{Flood, FloodTag, SpoofedRoutes, send_frames};
use headstart_integration_tests::lab::{Link, Namespace, cli};

use crate::common::{LIMIT, can_network};

const KEY: [u64; 2] = [0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00];

#[test]
fn a_flood_of_well_formed_syns_arrives_and_is_answered_inside() {
    if !can_network() {
        return;
    }
    let (node, attacker) = (Namespace::new("node").unwrap(), Namespace::new("attacker").unwrap());
    let link = Link::between(&node, &attacker).unwrap();
    let _routes = SpoofedRoutes::route(&link).unwrap();
    let target = link.host(8081);
    let _listener = node.enter(|| TcpListener::bind(target).unwrap()).unwrap();
    for tag in
        [FloodTag::None, FloodTag::Open(7), FloodTag::Authenticated { function: 7, number: 1, key: KEY }]
    {
        let before = counters(&node);
        let flood = Flood::new(&link, &[target.port()]).unwrap().lasting(Duration::from_millis(500));
        let sent = flood.tag(tag).cpu(0).start().unwrap().join().unwrap();
        println!("{:.0} SYNs a second; {} refused", sent.rate(), sent.refused);
        assert!(sent.frames > 1000, "{sent:?}");
        assert!(sent.took < Duration::from_secs(5), "{sent:?}");
        let after = counters(&node);
        let more = |name: &str| after(name) - before(name);
        assert_eq!(more("InCsumErrors") + more("InHdrErrors"), 0);
        assert!(more("InSegs") > 1000, "{} SYNs were taken in", more("InSegs"));
        assert!(more("OutSegs") > 1000, "{} were answered", more("OutSegs"));
    }
    let (received, forwarded) = (counters(&attacker)("InReceives"), counters(&attacker)("ForwDatagrams"));
    assert!(received > 1000, "the answers went back: {received}");
    assert_eq!(forwarded, 0, "and no further");
}

#[test]
fn a_flood_can_be_ended_early() {
    if !can_network() {
        return;
    }
    let namespace = Namespace::new("attacker").unwrap();
    let link = Link::connect(&namespace).unwrap();
    let running = Flood::new(&link, &[9]).unwrap().lasting(Duration::from_secs(60)).start().unwrap();
    assert!(running.is_running());
    let sent = running.stop().unwrap();
    assert!(sent.took < Duration::from_secs(30), "{sent:?}");
}

#[test]
fn raw_frames_arrive_as_they_are() {
    if !can_network() {
        return;
    }
    let (node, attacker) = (Namespace::new("node").unwrap(), Namespace::new("attacker").unwrap());
    let link = Link::between(&node, &attacker).unwrap();
    let before = received(&node, link.host_if());
    let runt = vec![0xff; 20];
    send_frames(&link, &[runt.clone(), runt]).unwrap();
    let arrived = || Ok((received(&node, link.host_if()) >= before + 2).then_some(()));
    cli::eventually("two frames", LIMIT, arrived).unwrap();
}

/// The counters of IP and TCP in a namespace (proc_net_snmp, SNMP MIB-2).
fn counters(namespace: &Namespace) -> impl Fn(&str) -> u64 {
    let text = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/snmp").unwrap()).unwrap();
    move |name: &str| {
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
        lines
            .chunks(2)
            .filter(|pair| pair[0][0] == "Ip:" || pair[0][0] == "Tcp:")
            .find_map(|pair| pair[0].iter().position(|key| *key == name).map(|at| pair[1][at]))
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    }
}

/// Frames that an interface received.
fn received(namespace: &Namespace, interface: &str) -> u64 {
    let table = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':')).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
