//! The socket between the agent and a parked process: the reports, and the release.

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::park::{self, ParkReport};
use crate::start::local::{Latch, LocalContainer};
use crate::start::{BoxFuture, StartError};

/// Longest report of the helper, in bytes.
const REPORT_BYTES: u64 = 4096;

/// The agent's end of an instance's release socket.
pub(super) struct ReleaseSocket {
    stream: BufReader<UnixStream>,
    /// What errors call the function's program.
    program: String,
}

impl ReleaseSocket {
    pub(super) fn new(stream: UnixStream, program: &str) -> Self {
        Self { stream: BufReader::new(stream), program: program.to_owned() }
    }

    /// To write to.
    pub(super) fn stream(&mut self) -> &mut UnixStream {
        self.stream.get_mut()
    }

    /// The next report of the helper. Those that are failures are errors here.
    pub(super) async fn report(&mut self) -> Result<ParkReport, StartError> {
        let mut line = String::new();
        let mut bounded = (&mut self.stream).take(REPORT_BYTES);
        bounded.read_line(&mut line).await.map_err(StartError::system("hearing from the helper"))?;
        let command = self.program.clone();
        match ParkReport::parse(line.trim_end()) {
            Some(ParkReport::Missing) => Err(StartError::CommandMissing {
                command,
                place:
                    "the node's file system as the user nobody sees it, with an empty /tmp, /var/tmp and /run"
                        .to_owned(),
            }),
            Some(ParkReport::Failed(detail)) => Err(StartError::Create { detail }),
            Some(ParkReport::NotExecuted(errno)) => Err(not_executed(command, errno)),
            Some(report) => Ok(report),
            None => Err(StartError::Create { detail: format!("the helper ended after {line:?}") }),
        }
    }

    async fn release(mut self, container: &LocalContainer) -> Result<u64, StartError> {
        if let Some(exit) = container.watch().now() {
            return Err(StartError::Died { exit });
        }
        let mut answer = Vec::new();
        let exchange = async {
            self.stream.get_mut().write_all(&[park::GO]).await?;
            self.stream.take(REPORT_BYTES).read_to_end(&mut answer).await
        };
        match exchange.await {
            Ok(0) => headstart_wire::monotonic_ns().map_err(StartError::system("reading the clock")),
            Ok(_) => {
                let answer = String::from_utf8(answer)
                    .map_err(|error| StartError::system("reading a report")(io::Error::other(error)))?;
                let errno = match ParkReport::parse(answer.lines().next().unwrap_or_default()) {
                    Some(ParkReport::NotExecuted(errno)) => errno,
                    _ => 0,
                };
                Err(not_executed(self.program, errno))
            }
            // There is no other end: the parked process is gone.
            Err(_) => Err(StartError::Died { exit: container.watch().exited().await }),
        }
    }
}

impl Latch for ReleaseSocket {
    fn open<'a>(self: Box<Self>, container: &'a LocalContainer) -> BoxFuture<'a, Result<u64, StartError>> {
        Box::pin(self.release(container))
    }
}

/// execve(2) has failed with this error number.
fn not_executed(command: String, errno: i32) -> StartError {
    StartError::Exec { command, detail: io::Error::from_raw_os_error(errno).to_string() }
}
