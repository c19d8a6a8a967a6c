//! Frames as the XDP program sees them.
#![no_main]

use headstart_ebpf::{event::SynEvent, knock::Knock, option::FunctionOption, packet};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frame: &[u8]| {
    let _ = packet::parse(frame);
    let _ = packet::read(frame);
    let _ = SynEvent::from_bytes(frame);
    // What is understood is written the same.
    if let Some(option) = frame.first_chunk().and_then(FunctionOption::decode) {
        assert_eq!(Some(&option.encode()), frame.first_chunk());
    }
    if let Some(knock) = frame.first_chunk().and_then(Knock::decode) {
        assert_eq!(Some(&knock.encode()), frame.first_chunk());
    }
});
