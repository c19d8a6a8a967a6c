//! What a server says to a login, and to the cleaning of a session.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| headstart_injector::fuzzing::server(script));
