//! `headstart check`: lists the problems of a configuration.

use std::process::ExitCode;

use super::arguments::ConfigArgs;
use crate::setup::{contract, front};
use crate::start::Drivers;

/// Prints every problem, or that there is none.
pub(super) fn run(args: &ConfigArgs) -> ExitCode {
    let config = match args.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let mut problems = config.check_host();
    problems.extend(Drivers::new(&config.agent).problems(&config.agent, &config.functions));
    problems.extend(contract::problems(&config));
    problems.extend(front::problems(&config));
    for problem in &problems {
        eprintln!("{problem}");
    }
    if !problems.is_empty() {
        return ExitCode::from(2);
    }
    let (functions, backends) = (config.functions.len(), config.backends.len());
    println!("{}: ok, {functions} functions and {backends} backends", args.config.display());
    ExitCode::SUCCESS
}
