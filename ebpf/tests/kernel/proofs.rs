//! Options, tags and knocks; and mutants of all packets there are.

use headstart_ebpf::event::Stat;
use headstart_ebpf::maps::PacketFlow;
use headstart_ebpf::option::FunctionOption;
use headstart_ebpf::packet::parse;

use headstart_ebpf_test_support::agreement::compare;
use headstart_ebpf_test_support::frames::*;
use headstart_ebpf_test_support::kernel::{Hook, Kernel, counted, untimed};
use headstart_ebpf_test_support::model::{Model, flow};
use headstart_ebpf_test_support::proofs::{self, *};

#[test]
fn options_tags_and_knocks_do_what_the_table_says() {
    for hook in Hook::ALL {
        let Some(mut kernel) = Kernel::open() else { return };
        let mut model = Model::of_every_kind(&mut kernel);
        for proof in proofs::all() {
            let run = untimed(kernel.run(hook, &proof.frame));
            assert_eq!(run.counted, counted(&proof.counts), "{hook:?}: {}", proof.name);
            assert_eq!(run.dropped, proof.dropped, "{hook:?}: {}", proof.name);
            assert_eq!(run, model.run(&proof.frame), "{hook:?}: {}", proof.name);
        }
    }
}

/// Nothing is dropped but what an operator closed, and knocks; and host and kernel agree on every packet.
#[test]
fn host_and_kernel_agree_on_twenty_thousand_mutants() {
    for hook in Hook::ALL {
        compare(hook, 20_000, 0);
    }
}

#[test]
fn the_named_function_gets_the_event_and_the_connection() {
    for hook in Hook::ALL {
        let Some(mut kernel) = Kernel::open() else { return };
        Model::of_every_kind(&mut kernel);
        let ours = |id: u32| FunctionOption::open(id).encode();
        let flow_of = |frame: &[u8]| -> PacketFlow { flow(&parse(frame).unwrap()) };

        let plain = syn_to(SHARED, 1, &[]);
        assert_eq!(kernel.run(hook, &plain).open[0].function, 1);
        assert_eq!(kernel.steered(&flow_of(&plain)), None);

        let guest = with(syn_to(SHARED, 2, &[&ours(GUEST)]), V4_TCP_AT, &[2, 2]);
        assert_eq!(kernel.run(hook, &guest).open[0].function, 2);
        assert_eq!(kernel.steered(&flow_of(&guest)), Some(2));

        let warm = with(syn_to(SHARED, 3, &[&ours(WARM)]), V4_TCP_AT, &[3, 3]);
        assert_eq!(kernel.run(hook, &warm).counted, counted(&[Stat::Warm]));
        assert_eq!(kernel.steered(&flow_of(&warm)), Some(3));

        // Who is refused is not steered; who is steered to where it goes anyway needs no entry.
        let refused = with(syn_to(SHARED, 4, &[&ours(CLOSED)]), V4_TCP_AT, &[4, 4]);
        assert!(kernel.run(hook, &refused).dropped);
        assert_eq!(kernel.steered(&flow_of(&refused)), None);
        let own = with(tagged_syn(CONNECT, 5, KEY, 1, EPOCH, CLOSED), V4_TCP_AT, &[5, 5]);
        assert_eq!(kernel.run(hook, &own).authenticated[0].function, 5);
        assert_eq!(kernel.steered(&flow_of(&own)), None);
    }
}

/// Who uses a port again is another client.
#[test]
fn a_syn_that_names_no_function_ends_what_an_earlier_one_has_named() {
    for hook in Hook::ALL {
        let Some(mut kernel) = Kernel::open() else { return };
        Model::of_every_kind(&mut kernel);
        let (named, plain) = (FunctionOption::open(GUEST).encode(), syn_to(SHARED, 2, &[]));
        let from_here = flow(&parse(&plain[..]).unwrap());
        kernel.run(hook, &syn_to(SHARED, 1, &[&named]));
        assert_eq!(kernel.steered(&from_here), Some(2));
        // A later one of the same client that names the function again changes nothing.
        kernel.run(hook, &syn_to(SHARED, 2, &[&named]));
        assert_eq!(kernel.steered(&from_here), Some(2));
        kernel.run(hook, &plain);
        assert_eq!(kernel.steered(&from_here), None);
    }
}

#[test]
fn a_knock_says_who_knocked_and_for_whom() {
    for hook in Hook::ALL {
        let Some(mut kernel) = Kernel::open() else { return };
        Model::of_every_kind(&mut kernel);
        let run = kernel.run(hook, &knock(KEY, EPOCH, CLOSED, 1));
        let event = run.authenticated[0];
        assert_eq!((event.function, event.isn, event.dst_port), (5, 0, KNOCK_PORT));
        assert_eq!(event.source(), "192.0.2.10:40000".parse().unwrap());
        assert!(event.is_authenticated());
    }
}

#[test]
fn an_opened_function_closes_again() {
    let Some(mut kernel) = Kernel::open() else { return };
    Model::of_every_kind(&mut kernel);
    kernel.set(|settings| settings.opened_ns = 0);
    assert_eq!(kernel.run(Hook::Xdp, &knock(KEY, EPOCH, CLOSED, 1)).counted, counted(&[Stat::Knock]));
    assert_eq!(kernel.run(Hook::Xdp, &syn_to(CONNECT, 1, &[])).counted, counted(&[Stat::Refused]));
}

/// A function that looks for no option takes every SYN for a plain one.
#[test]
fn without_leave_to_look_options_mean_nothing() {
    let Some(mut kernel) = Kernel::open() else { return };
    let key = headstart_ebpf::maps::PortKey::any(SHARED);
    kernel.own(key, 1, 0);
    kernel.own(key.with_id(GUEST), 2, 0);
    let run = kernel.run(Hook::Xdp, &tagged_syn(SHARED, 1, KEY, 1, EPOCH, GUEST));
    assert_eq!(run.open[0].function, 1);
    assert_eq!(run.counted, counted(&[Stat::Event]));
}
