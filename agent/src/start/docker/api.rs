//! The few calls of the daemon's API that are needed, each with a deadline.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bollard::ClientVersion;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, ContainerSummaryStateEnum as State};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
    WaitContainerOptions, WaitContainerOptionsBuilder,
};
use futures_util::StreamExt as _;
use tokio::sync::OnceCell;

use super::INSTANCE_LABEL;
use crate::start::error::within;
use crate::start::logs::Lines;
use crate::start::{Exit, StartError, name};

/// Making a container takes some 100 ms, starting it 200 to 300; a daemon
/// under load has been seen to take many seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Versions of the API that are tried, newest first: daemons from 29 on refuse
/// anything below 1.44, and 20.10 anything above 1.41. All that is used here is in both.
const VERSIONS: [ClientVersion; 2] = [
    ClientVersion { major_version: 1, minor_version: 44 },
    ClientVersion { major_version: 1, minor_version: 41 },
];

/// The end of a container that was removed.
pub(super) const KILLED: Exit = Exit { code: None, signal: Some(9), oom: false };

/// Exit codes above this are, by convention of shells and daemons, signal numbers.
const SIGNAL_BASE: i64 = 128;

/// What the daemon calls an instance's container.
pub(super) fn container_name(instance: &str) -> String {
    format!("headstart-{instance}")
}

/// A container that the daemon has.
pub(super) struct ListedContainer {
    pub(super) id: String,
    pub(super) instance: String,
    /// It was started and has not ended.
    pub(super) runs: bool,
    /// It is paused.
    pub(super) frozen: bool,
}

/// What of a container's output is logged.
#[derive(Clone, Copy)]
pub(super) enum Output {
    /// All of it.
    Whole,
    /// What it prints from now on: an earlier agent has logged the rest, up to its own end.
    New,
}

/// The daemon.
pub(super) struct Api {
    socket: PathBuf,
    /// Made at the first call that finds the daemon; a restart of the daemon does not matter to it.
    client: OnceCell<bollard::Docker>,
}

impl Api {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, client: OnceCell::new() }
    }

    /// Whether there may be a daemon.
    pub(super) fn has_socket(&self) -> bool {
        self.socket.exists()
    }

    async fn client(&self) -> Result<&bollard::Docker, StartError> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<bollard::Docker, StartError> {
        let path = self.socket.to_string_lossy();
        let mut detail = String::new();
        for version in &VERSIONS {
            let tried = async {
                let client = bollard::Docker::connect_with_unix(&path, CALL_TIMEOUT.as_secs(), version)?;
                client.version().await.map(|_| client)
            };
            match tried.await {
                Ok(client) => return Ok(client),
                Err(error) => detail = error.to_string(),
            }
        }
        Err(StartError::DaemonUnreachable { socket: self.socket.clone(), detail })
    }

    /// Creates a container; returns its id.
    pub(super) async fn create(
        &self,
        instance: &str,
        image: &str,
        body: ContainerCreateBody,
    ) -> Result<String, StartError> {
        let name = CreateContainerOptionsBuilder::default().name(&container_name(instance)).build();
        let call = self.client().await?.create_container(Some(name), body);
        match within(CALL_TIMEOUT, "creating a container", call).await? {
            Ok(created) => Ok(created.id),
            Err(Error::DockerResponseServerError { status_code: 404, message })
                if message.contains("image") =>
            {
                Err(StartError::ImageMissing { image: image.to_owned() })
            }
            Err(error) => Err(self.explain(error)),
        }
    }

    /// What an image executes: its entry point, then these words or its own.
    pub(super) async fn command(&self, image: &str, words: &[String]) -> Result<Vec<String>, StartError> {
        let call = self.client().await?.inspect_image(image);
        let inspected = match within(CALL_TIMEOUT, "inspecting an image", call).await? {
            Ok(inspected) => inspected,
            Err(error) if is_status(&error, 404) => {
                return Err(StartError::ImageMissing { image: image.to_owned() });
            }
            Err(error) => return Err(self.explain(error)),
        };
        let config = inspected.config.unwrap_or_default();
        let own = config.cmd.unwrap_or_default();
        let entry = config.entrypoint.unwrap_or_default().into_iter();
        Ok(entry.chain(if words.is_empty() { own } else { words.to_vec() }).collect())
    }

    pub(super) async fn start(&self, id: &str, program: &str) -> Result<(), StartError> {
        let call = self.client().await?.start_container(id, None::<StartContainerOptions>);
        let error = match within(CALL_TIMEOUT, "starting a container", call).await? {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let Error::DockerResponseServerError { status_code, message } = error else {
            return Err(self.explain(error));
        };
        let command = program.to_owned();
        let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
        Err(match status_code {
            // No such container: it was removed from outside.
            404 if says(&["No such container"]) => StartError::Died { exit: KILLED },
            _ if says(&["exec: "]) && says(&["no such file or directory", "not found"]) => {
                StartError::CommandMissing { command, place: "the image".to_owned() }
            }
            _ if says(&["exec: ", "exec format error"]) => StartError::Exec { command, detail: message },
            _ => StartError::Create { detail: message },
        })
    }

    /// Waits until a container is removed, whatever its state.
    pub(super) async fn wait_removed(&self, id: &str) -> Result<(), StartError> {
        let removed = WaitContainerOptionsBuilder::default().condition("removed").build();
        self.wait_for(id, removed).await.map(|_gone| ())
    }

    /// Waits until the condition holds; false when there is no such container.
    async fn wait_for(&self, id: &str, condition: WaitContainerOptions) -> Result<bool, StartError> {
        let mut answers = std::pin::pin!(self.client().await?.wait_container(id, Some(condition)));
        match answers.next().await {
            Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => Ok(true),
            Some(Err(error)) if is_status(&error, 404) => Ok(false),
            Some(Err(error)) => Err(self.explain(error)),
            None => Err(self.unreachable("it ended the wait without an answer".to_owned())),
        }
    }

    /// Waits until a started container has ended.
    pub(super) async fn wait(&self, id: &str) -> Result<Exit, StartError> {
        if !self.wait_for(id, WaitContainerOptionsBuilder::default().build()).await? {
            return Ok(KILLED);
        }
        let client = self.client().await?;
        let call = client.inspect_container(id, None::<InspectContainerOptions>);
        let state = match within(CALL_TIMEOUT, "inspecting a container", call).await? {
            Ok(inspected) => inspected.state.unwrap_or_default(),
            Err(error) if is_status(&error, 404) => return Ok(KILLED),
            Err(error) => return Err(self.explain(error)),
        };
        let code = state.exit_code.unwrap_or_default();
        let oom = state.oom_killed.unwrap_or_default();
        let number = |value: i64| i32::try_from(value).ok();
        Ok(if code > SIGNAL_BASE {
            Exit { code: None, signal: number(code - SIGNAL_BASE), oom }
        } else {
            Exit { code: number(code), signal: None, oom: oom && code != 0 }
        })
    }

    /// Logs what a started container prints, until it ends.
    pub(super) async fn follow_logs(&self, id: &str, instance: &str, output: Output) {
        let Ok(client) = self.client().await else { return };
        let options = LogsOptionsBuilder::default().follow(true).stdout(true).stderr(true);
        let options = match output {
            Output::Whole => options,
            Output::New => options.tail("0"),
        };
        let options = options.build();
        let mut output = std::pin::pin!(client.logs(id, Some(options)));
        let mut lines = Lines::new(name::function_of(instance), instance);
        while let Some(Ok(LogOutput::StdOut { message } | LogOutput::StdErr { message })) =
            output.next().await
        {
            lines.push(&message);
            // What has come already must not keep others waiting.
            tokio::task::yield_now().await;
        }
        lines.end();
    }

    /// Stops all processes of a running container. Can be repeated.
    pub(super) async fn pause(&self, id: &str) -> Result<(), StartError> {
        let call = self.client().await?.pause_container(id);
        let paused = within(CALL_TIMEOUT, "freezing a container", call).await?;
        match paused {
            Err(Error::DockerResponseServerError { message, .. }) if message.contains("already paused") => {
                Ok(())
            }
            Err(Error::DockerResponseServerError { message, .. }) => {
                Err(StartError::Freeze { detail: message })
            }
            paused => paused.map_err(|error| self.explain(error)),
        }
    }

    /// Lets a paused container run again; nothing happens when it runs, or is gone.
    pub(super) async fn unpause(&self, id: &str) -> Result<(), StartError> {
        let call = self.client().await?.unpause_container(id);
        match within(CALL_TIMEOUT, "thawing a container", call).await? {
            Err(error) if is_status(&error, 404) => Ok(()),
            Err(Error::DockerResponseServerError { message, .. })
                if ["is not paused", "is not running"].iter().any(|what| message.contains(what)) =>
            {
                Ok(())
            }
            Err(Error::DockerResponseServerError { message, .. }) => {
                Err(StartError::Thaw { detail: message })
            }
            thawed => thawed.map_err(|error| self.explain(error)),
        }
    }

    pub(super) async fn terminate(&self, id: &str) -> Result<(), StartError> {
        let signal = KillContainerOptionsBuilder::default().signal("SIGTERM").build();
        let call = self.client().await?.kill_container(id, Some(signal));
        match within(CALL_TIMEOUT, "stopping a container", call).await? {
            // 404 gone, 409 not running.
            Err(error) if !is_status(&error, 404) && !is_status(&error, 409) => Err(self.explain(error)),
            _ => Ok(()),
        }
    }

    /// Kills and removes a container, and its anonymous volumes.
    pub(super) async fn remove(&self, id: &str) -> Result<(), StartError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let call = self.client().await?.remove_container(id, Some(options));
        match within(CALL_TIMEOUT, "removing a container", call).await? {
            Err(error) if !is_status(&error, 404) => Err(self.explain(error)),
            _ => Ok(()),
        }
    }

    /// All containers with these labels, running or not.
    pub(super) async fn list(&self, labels: &[(&str, String)]) -> Result<Vec<ListedContainer>, StartError> {
        let labels = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let filters = HashMap::from([("label".to_owned(), labels)]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let call = self.client().await?.list_containers(Some(options));
        let found = within(CALL_TIMEOUT, "listing containers", call).await?;
        let found = found.map_err(|error| self.explain(error))?;
        let listed = found.into_iter().filter_map(|container| {
            let instance = container.labels?.remove(INSTANCE_LABEL)?;
            let state = container.state?;
            let frozen = state == State::PAUSED;
            let runs = frozen || matches!(state, State::RUNNING | State::RESTARTING | State::STOPPING);
            Some(ListedContainer { id: container.id?, instance, runs, frozen })
        });
        Ok(listed.collect())
    }

    fn explain(&self, error: Error) -> StartError {
        match error {
            Error::DockerResponseServerError { message, .. } => StartError::Create { detail: message },
            Error::RequestTimeoutError => {
                StartError::TimedOut { step: "a call of the container daemon", after: CALL_TIMEOUT }
            }
            other => self.unreachable(other.to_string()),
        }
    }

    fn unreachable(&self, detail: String) -> StartError {
        StartError::DaemonUnreachable { socket: self.socket.clone(), detail }
    }
}

fn is_status(error: &Error, status: u16) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code, .. } if *status_code == status)
}
