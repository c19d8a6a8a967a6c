//! A configuration file.
#![no_main]

use headstart_config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // Every problem can be shown.
    if let Err(errors) = Config::parse("headstart.toml", text) {
        assert!(!errors.to_string().is_empty());
    }
});
