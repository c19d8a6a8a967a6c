//! A client in a process of its own, so that `headstart tag` can run it. For each line on standard input it makes one
//! request on a new connection, and prints how long that took. It is a mode of the program that measures.

use std::io::{self, BufRead as _, Write as _};
use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::site::LIMIT;
use crate::lab::{ChildProcess, Namespace, client};

/// The argument that selects this mode; the address to ask follows.
pub const MODE: &str = "--ask";

/// The client process, as the measuring program sees it. A drop ends it.
#[derive(Debug)]
pub struct Asker {
    process: ChildProcess,
    orders: std::process::ChildStdin,
    asked: usize,
}

impl Asker {
    /// Starts it in `namespace`. `command` becomes `prefix PROGRAM --ask TARGET`; the program is this one.
    pub fn start(namespace: &Namespace, mut command: Command, target: SocketAddr) -> Result<Self> {
        command.arg(std::env::current_exe()?).args([MODE, &target.to_string()]);
        let (process, orders) = namespace.enter(|| ChildProcess::spawn_with_input(&mut command))??;
        Ok(Self { process, orders, asked: 0 })
    }

    /// One request: from its SYN to the last byte of a good answer.
    pub fn ask(&mut self) -> Result<Duration> {
        self.asked += 1;
        writeln!(self.orders, "{}", self.asked)?;
        let mark = format!("#{} ", self.asked);
        let line = self.process.wait_line(&mark, LIMIT)?;
        let (_, said) = line.split_once(&mark).with_context(|| format!("not an answer: {line}"))?;
        let nanoseconds = said.trim().parse().with_context(|| format!("the request failed: {said}"))?;
        Ok(Duration::from_nanos(nanoseconds))
    }
}

/// Runs the client until its standard input is closed.
pub fn main(target: &str) -> ExitCode {
    match answer(target) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{target}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn answer(target: &str) -> Result<()> {
    let target: SocketAddr = target.parse()?;
    for number in io::stdin().lock().lines() {
        let number = number?;
        let said = match once(target) {
            Ok(took) => took.as_nanos().to_string(),
            Err(error) => format!("{error:#}"),
        };
        println!("#{number} {said}");
    }
    Ok(())
}

fn once(target: SocketAddr) -> Result<Duration> {
    let reply = client::get(target, "/", LIMIT)?;
    ensure!(reply.status == 200, "{} {}", reply.status, reply.body);
    Ok(reply.timings.total)
}
