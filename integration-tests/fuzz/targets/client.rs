//! What a driver says on a backend's socket.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| headstart_injector::fuzzing::client(bytes));
