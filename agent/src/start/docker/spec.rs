//! The description of a container for the daemon.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountBindOptions, MountType,
    ResourcesUlimits,
};
use headstart_wire::{BACKENDS_PATH, CONTROL_PATH};

use super::{DockerRuntime, FUNCTION_LABEL, INSTANCE_LABEL, STATE_DIR_LABEL};
use crate::start::{INIT_PATH, OPEN_FILES, TMP_BYTES, name};

/// What an instance sees of the node.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    /// Its control socket.
    pub(super) control: &'a Path,
    /// The directory with the sockets of its backends.
    pub(super) backends: Option<&'a Path>,
    /// The file of its init.
    pub(super) init: Option<&'a Path>,
}

/// The description of an instance. `entry_point` is executed instead of what image and configuration say.
pub(super) fn body(
    runtime: &DockerRuntime,
    instance: &str,
    shown: Shown<'_>,
    entry_point: Option<Vec<String>>,
) -> ContainerCreateBody {
    let spec = &runtime.spec;
    let env = spec.environment().into_iter();
    // An image knows its own PATH best.
    let own_path = spec.env.iter().any(|(name, _)| name == "PATH");
    let env =
        env.filter(|(name, _)| own_path || name != "PATH").map(|(name, value)| format!("{name}={value}"));
    let labels = [
        (FUNCTION_LABEL, spec.function.clone()),
        (STATE_DIR_LABEL, runtime.host.state_dir.display().to_string()),
        (INSTANCE_LABEL, instance.to_owned()),
    ];
    ContainerCreateBody {
        image: Some(runtime.image.clone()),
        user: Some(runtime.user.clone()),
        hostname: Some(name::host(instance).to_owned()),
        env: Some(env.collect()),
        cmd: (!spec.command.is_empty() && entry_point.is_none()).then(|| spec.command.clone()),
        entrypoint: entry_point,
        // A frozen container would become unhealthy.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into()),
        host_config: Some(host_config(runtime, shown)),
        ..Default::default()
    }
}

fn host_config(runtime: &DockerRuntime, shown: Shown<'_>) -> HostConfig {
    let memory_bytes = i64::try_from(runtime.spec.memory_bytes).unwrap_or(i64::MAX);
    let shares = &runtime.spec.shares;
    let open_files = i64::try_from(OPEN_FILES).ok();
    let limit =
        |name: &str, value| ResourcesUlimits { name: Some(name.to_owned()), soft: value, hard: value };
    let control = Some((shown.control, CONTROL_PATH, false));
    let backends = shown.backends.map(|backends| (backends, BACKENDS_PATH, true));
    let init = shown.init.map(|init| (init, INIT_PATH, true));
    let own = runtime.spec.mounts.iter();
    let own = own.map(|own| (own.source.as_path(), own.target.to_string_lossy(), own.read_only));
    let agents = control.into_iter().chain(backends).chain(init);
    let agents = agents.map(|(source, target, read_only)| (source, Cow::Borrowed(target), read_only));
    let mounts = agents.chain(own).map(|(source, target, read_only)| Mount {
        typ: Some(MountType::BIND),
        source: Some(source.display().to_string()),
        target: Some(target.into_owned()),
        read_only: Some(read_only),
        // What is mounted below the source could be written to.
        bind_options: Some(MountBindOptions { non_recursive: Some(true), ..Default::default() }),
        ..Default::default()
    });
    let log_options = [("max-size", "1m"), ("max-file", "1")];
    HostConfig {
        network_mode: Some(runtime.network.clone()),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        readonly_rootfs: Some(true),
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), format!("mode=1777,size={TMP_BYTES}"))])),
        memory: Some(memory_bytes),
        memory_swap: Some(memory_bytes),
        nano_cpus: shares.cpu_millis.map(|millis| i64::from(millis) * 1_000_000),
        // The units of cgroup v1, which the daemon converts.
        cpu_shares: shares.cpu_weight.map(|weight| (i64::from(weight) * 1024 / 100).clamp(2, 262_144)),
        blkio_weight: shares.io_weight.and_then(|weight| u16::try_from(weight.clamp(10, 1000)).ok()),
        pids_limit: Some(i64::try_from(runtime.spec.pids).unwrap_or(i64::MAX)),
        ulimits: Some(vec![limit("nofile", open_files), limit("core", Some(0))]),
        auto_remove: Some(false),
        // Bounded on disk: the agent's log is where they are kept.
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(log_options.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
        }),
        mounts: Some(mounts.collect()),
        ..Default::default()
    }
}
