//! What the benches and the demo measure with: turns and samples, the report, and what Headstart is compared with.

pub mod bench;
pub mod interrupt;

pub mod gateway;
pub mod peers;
pub mod usual;

pub mod report;
