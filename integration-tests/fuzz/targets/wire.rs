//! What an instance, or the agent, says on a control socket.
#![no_main]

use headstart_wire::{Direction, ToAgent, ToFunction};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    again::<ToAgent>(packet);
    again::<ToFunction>(packet);
});

/// What is understood can be said again, and means the same.
fn again<M: Direction + PartialEq + std::fmt::Debug>(packet: &[u8]) {
    if let Ok(message) = M::decode(packet)
        && let Ok(said) = message.encode()
    {
        assert_eq!(M::decode(&said).ok(), Some(message));
    }
}
