//! Both sensors on an interface, under real connections and real segments of up to 64 KB.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use aya::programs::tc::TcAttachType;
use aya::programs::{SchedClassifier, Xdp, XdpMode};
use aya::util::KernelVersion;
use headstart_ebpf::event::{EventKind, Stat};
use headstart_ebpf::maps::{PROGRAM_TCX, PROGRAM_XDP, PortKey};

use super::FUNCTION;
use super::namespace::{ADDRESS, alone, attach_lookup};
use headstart_ebpf_test_support::kernel::{Hook, Kernel};

fn attach(kernel: &mut Kernel, hook: Hook) {
    match hook {
        Hook::Xdp => {
            let program: &mut Xdp = kernel.ebpf.program_mut(PROGRAM_XDP).unwrap().try_into().unwrap();
            program.attach("lo", XdpMode::Skb).expect("generic XDP on loopback");
        }
        Hook::Tcx => {
            let program: &mut SchedClassifier =
                kernel.ebpf.program_mut(PROGRAM_TCX).unwrap().try_into().unwrap();
            program.attach("lo", TcAttachType::Ingress).expect("tcx, Linux 6.6 and later");
        }
    }
}

#[test]
fn a_real_connection_is_announced_once_and_loses_nothing() {
    const BYTES: usize = 8 << 20;
    for hook in Hook::ALL {
        if hook == Hook::Tcx && KernelVersion::current().unwrap() < KernelVersion::new(6, 6, 0) {
            println!("SKIPPED: tcx came with Linux 6.6");
            continue;
        }
        alone(move |mut kernel| {
            attach(&mut kernel, hook);
            let listener = TcpListener::bind(SocketAddr::new(ADDRESS.parse().unwrap(), 0)).unwrap();
            let server = listener.local_addr().unwrap();
            kernel.own(PortKey::listener(server), FUNCTION, 0);
            let mut client = TcpStream::connect(server).unwrap();
            let (mut served, from) = listener.accept().unwrap();
            let writer = std::thread::spawn(move || client.write_all(&vec![b'x'; BYTES]));
            let mut received = Vec::new();
            served.read_to_end(&mut received).unwrap();
            writer.join().unwrap().unwrap();
            assert_eq!(received.len(), BYTES, "{hook:?}");
            let events = kernel.take_events().0;
            assert_eq!(events.len(), 1, "{hook:?}");
            assert_eq!((events[0].kind(), events[0].source()), (Some(EventKind::Syn), from), "{hook:?}");
            assert_eq!(events[0].destination(), server);
            let counters = kernel.counters();
            let packets = counters[Stat::Packets as usize];
            assert_eq!(counters[Stat::NotSyn as usize], packets - 1, "{hook:?}");
            // The sender hands over large segments: far fewer packets than full frames would be.
            println!("{hook:?}: {packets} packets for {BYTES} bytes");
            assert!(packets < (BYTES / 8_000) as u64, "{hook:?}: {packets} packets");
        });
    }
}

/// XDP and the socket lookup both see the SYN; what XDP has dealt with, the lookup neither announces nor counts.
#[test]
fn a_connection_that_two_sensors_see_is_announced_once() {
    alone(|mut kernel| {
        attach(&mut kernel, Hook::Xdp);
        attach_lookup(&mut kernel);
        let any = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = any.local_addr().unwrap().port();
        kernel.own(PortKey::any(port), FUNCTION, 0);
        let watched = SocketAddr::new(ADDRESS.parse().unwrap(), port);
        // XDP refuses loopback addresses: only the lookup reports their connections.
        let unwatched = SocketAddr::from(([127, 0, 0, 1], port));
        for (to, kind) in
            [(watched, EventKind::Syn), (unwatched, EventKind::Lookup), (watched, EventKind::Syn)]
        {
            let client = TcpStream::connect(to).unwrap();
            let events = kernel.take_events().0;
            assert_eq!(events.len(), 1, "{to}: {events:?}");
            assert_eq!((events[0].kind(), events[0].source()), (Some(kind), client.local_addr().unwrap()));
        }
        let counters = kernel.counters();
        let of = |stat: Stat| counters[stat as usize];
        assert_eq!((of(Stat::Event), of(Stat::LookupEvent), of(Stat::LookupBudget)), (2, 1, 0));
    });
}
