use super::*;

const SECOND: u64 = 1_000_000_000;

fn syn(address: &str, isn: u32) -> Demand {
    let client = Some(ClientIdentity { address: address.parse().unwrap(), isn });
    Demand { trigger: Trigger::Syn, standing: Standing::Open, client, alias: None, at_ns: 0, seen_ns: 0 }
}

fn a() -> Demand {
    syn("198.51.100.7:4000", 77)
}

#[test]
fn only_the_same_client_asking_for_the_same_function_is_a_duplicate() {
    let mut recent = RecentClients::new();
    assert!(!recent.is_duplicate(1, &a(), 0), "no client has asked yet");
    recent.remember(1, &a(), false, 0);
    let lookup = Demand { trigger: Trigger::Lookup, ..syn("198.51.100.7:4000", 0) };
    let knock = Demand { trigger: Trigger::Knock, ..syn("198.51.100.7:4000", 0) };
    for (function, demand, duplicate, what) in [
        (1, a(), true, "the same SYN"),
        (1, lookup, true, "the other sensor"),
        (1, syn("198.51.100.7:4000", 78), false, "a new connection from the same port"),
        (2, a(), false, "another function"),
        (1, syn("198.51.100.7:4001", 77), false, "another port"),
        (1, syn("198.51.100.8:4000", 77), false, "another address"),
        (1, syn("[2001:db8::7]:4000", 77), false, "another address family"),
        (1, knock, false, "a knock has a port of its own"),
    ] {
        assert_eq!(recent.is_duplicate(function, &demand, SECOND), duplicate, "{what}");
    }
}

#[test]
fn retransmissions_after_one_three_and_seven_seconds_are_duplicates_and_what_comes_later_is_not() {
    let mut recent = RecentClients::new();
    recent.remember(1, &a(), false, 5 * SECOND);
    for (seconds, duplicate) in [(1, true), (3, true), (7, true), (10, false), (15, false)] {
        assert_eq!(recent.is_duplicate(1, &a(), (5 + seconds) * SECOND), duplicate, "{seconds} s");
    }
}

#[test]
fn a_key_is_news_only_where_an_open_syn_was_refused() {
    let with_key = Demand { standing: Standing::Key, ..a() };
    for (refused, duplicate) in [(false, true), (true, false)] {
        let mut recent = RecentClients::new();
        recent.remember(1, &a(), refused, 0);
        assert_eq!(recent.is_duplicate(1, &with_key, 1), duplicate);
        assert!(recent.is_duplicate(1, &a(), 1), "without a key it stays refused");
        recent.remember(1, &with_key, false, 1);
        assert!(recent.is_duplicate(1, &with_key, 2), "once");
    }
}

#[test]
fn waiting_connections_and_operators_are_never_duplicates() {
    let mut recent = RecentClients::new();
    for trigger in [Trigger::Accept, Trigger::Api] {
        let demand = Demand { trigger, ..a() };
        recent.remember(1, &demand, false, 0);
        assert!(!recent.is_duplicate(1, &demand, 0));
    }
    recent.remember(1, &Demand { client: None, ..a() }, false, 0);
    assert!(!recent.is_duplicate(1, &Demand { client: None, ..a() }, 0));
}

#[test]
fn any_number_of_clients_fits_and_the_last_of_them_is_known() {
    let mut recent = RecentClients::new();
    for client in 0..100_000u32 {
        let [_, b, c, d] = client.to_be_bytes();
        let demand = syn(&format!("10.{b}.{c}.{d}:4000"), client);
        assert!(!recent.is_duplicate(1, &demand, 0), "a slot taken by another is no match");
        recent.remember(1, &demand, false, 0);
        assert!(recent.is_duplicate(1, &demand, 0));
    }
    assert_eq!(recent.0.len(), SLOTS);
}
