//! The commands for machines that call functions, as a user runs them: `headstart tag` and `headstart knock`.

mod common;
mod knock;
mod lab;
mod tag;
