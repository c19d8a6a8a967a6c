//! TLS records of a server whose session goes on in a function.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| headstart::fuzzing::records(bytes));
