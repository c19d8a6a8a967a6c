//! The parser on the host, against the table of packets it must survive, and against noise.

use std::collections::HashSet;

use headstart_ebpf::packet::parse;
use headstart_ebpf_test_support::{mutate, rows};
use proptest::prelude::*;

#[test]
fn every_row_parses_as_the_table_says() {
    let wrong: Vec<String> = rows::all()
        .iter()
        .filter(|row| parse(row.frame.as_slice()) != row.expect)
        .map(|row| format!("{}: {:?}, expected {:?}", row.name, parse(row.frame.as_slice()), row.expect))
        .collect();
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn rows_have_names_of_their_own() {
    let rows = rows::all();
    let names: HashSet<_> = rows.iter().map(|row| &row.name).collect();
    assert_eq!(names.len(), rows.len());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

    #[test]
    fn noise_is_survived(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _verdict = parse(frame.as_slice());
    }

    #[test]
    fn mutants_are_survived_and_their_syns_are_sane(frame in mutate::frames()) {
        if let Ok(syn) = parse(frame.as_slice()) {
            prop_assert!(syn.src_port != 0 && syn.dst_port != 0);
            prop_assert!(syn.ip_version == 4 || syn.ip_version == 6);
            prop_assert!(frame.len() >= 54, "no SYN fits into {} bytes", frame.len());
        }
    }
}
