//! `headstart try`: one program as a function, without a configuration file.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use nix::unistd::{AccessFlags, access, geteuid};
use toml::{Table, Value};

use super::arguments::ConfigArgs;
use super::run;

/// Where its state is, in a directory with the number of this process.
const STATE: &str = "/run";

/// `headstart try`.
#[derive(Debug, clap::Args)]
pub(super) struct TryArgs {
    /// Where clients connect.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where the agent answers commands such as `headstart status`.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    admin: SocketAddr,
    /// The port that the program listens on [default: that of --listen]
    #[arg(long)]
    port: Option<u16>,
    /// The program is a client of the Runtime API of AWS Lambda, and runs this handler, as in "app.handler".
    #[arg(long, value_name = "HANDLER", conflicts_with = "port")]
    lambda: Option<String>,
    /// Most memory of an instance, as in "512MiB".
    #[arg(long, default_value = "1GiB")]
    memory: String,
    /// A variable for the program, NAME=VALUE, or NAME for that of this shell. May be repeated.
    #[arg(long, value_name = "VARIABLE")]
    env: Vec<String>,
    /// Idle time after which the program is frozen.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    freeze_after: String,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

/// Prints the configuration and serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the program is not found, or the agent cannot start.
pub(super) fn run(args: &TryArgs) -> anyhow::Result<ExitCode> {
    ensure!(geteuid().is_root(), "it takes root to make namespaces: try sudo");
    let state = State::new()?;
    let text = configuration(args, &state.0)?;
    println!("{text}");
    println!("# Clients connect to http://{}/, and Ctrl-C ends it.\n", args.listen);
    let config = state.0.join("headstart.toml");
    fs::write(&config, &text).with_context(|| format!("writing {}", config.display()))?;
    run::serve(&ConfigArgs { config }, true)
}

fn configuration(args: &TryArgs, state: &Path) -> anyhow::Result<String> {
    let (program, arguments) = args.command.split_first().context("no program")?;
    let program = find(program, env::var_os("PATH").unwrap_or_default().as_ref())?;
    let here = env::current_dir().context("the current directory")?;
    let name = name(&program);
    let command = [program.display().to_string()].into_iter().chain(arguments.iter().cloned());
    let variables =
        args.env.iter().map(|variable| variable_of(variable)).collect::<anyhow::Result<Table>>()?;
    let mut function = table([
        ("name", name.into()),
        ("listen", args.listen.to_string().into()),
        ("runtime", "process".into()),
        ("command", command.map(Value::from).collect::<Vec<_>>().into()),
        ("env", variables.into()),
        ("workdir", here.display().to_string().into()),
        ("memory", args.memory.clone().into()),
        // Runtimes with a pool of threads start more than the default.
        ("pids", 512.into()),
        ("freeze_after", args.freeze_after.clone().into()),
    ]);
    function.extend(match &args.lambda {
        Some(handler) => table([("contract", "lambda".into()), ("handler", handler.clone().into())]),
        None => table([
            ("contract", "port".into()),
            ("port", i64::from(args.port.unwrap_or(args.listen.port())).into()),
        ]),
    });
    let agent = table([
        ("interfaces", Value::Array(vec!["auto".into()])),
        ("admin", args.admin.to_string().into()),
        ("state_dir", state.join("state").display().to_string().into()),
    ]);
    let syn = table([("pin_dir", format!("/sys/fs/bpf/headstart-try-{}", std::process::id()).into())]);
    let sections = table([
        ("agent", agent.into()),
        ("syn", syn.into()),
        ("function", Value::Array(vec![function.into()])),
    ]);
    Ok(toml::to_string(&sections)?)
}

fn variable_of(text: &str) -> anyhow::Result<(String, Value)> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => (text, env::var(text).with_context(|| format!("the variable {text} of this shell"))?),
    };
    Ok((name.to_owned(), value.into()))
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Table {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The absolute path of the program, as a shell finds it.
fn find(program: &str, path: &Path) -> anyhow::Result<PathBuf> {
    let executable = |file: &PathBuf| file.is_file() && access(file, AccessFlags::X_OK).is_ok();
    let found = if program.contains('/') {
        fs::canonicalize(program).ok().filter(executable)
    } else {
        env::split_paths(path).map(|directory| directory.join(program)).find(executable)
    };
    match found {
        Some(found) => Ok(found),
        None => bail!("{program} is not found, or cannot be executed"),
    }
}

/// A function's name, made of the program's.
fn name(program: &Path) -> String {
    let stem = program.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '-' };
    let name: String = stem.chars().map(plain).take(32).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "program".to_owned() } else { name.to_owned() }
}

/// A directory of its own. Removed on drop.
struct State(PathBuf);

impl State {
    fn new() -> anyhow::Result<Self> {
        let path = Path::new(STATE).join(format!("headstart-try-{}", std::process::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // What is left of it is in a tmpfs.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use headstart_config::{Config, Contract};

    #[test]
    fn the_configuration_that_is_printed_is_a_good_one() {
        let mut args = TryArgs {
            listen: "127.0.0.1:8080".parse().unwrap(),
            admin: "127.0.0.1:9465".parse().unwrap(),
            port: Some(3000),
            lambda: None,
            memory: "512MiB".into(),
            env: vec!["A=b=c".into(), "PATH".into()],
            freeze_after: "5s".into(),
            command: ["sh", "-c", "echo \"a\\b\n\""].map(str::to_owned).into(),
        };
        let text = configuration(&args, Path::new("/run/x")).unwrap();
        let config = Config::parse("try", &text).unwrap_or_else(|errors| panic!("{text}\n{errors}"));
        let function = &config.functions[0];
        assert_eq!(function.name, "sh");
        assert_eq!(function.env.iter().next(), Some(("A", "b=c")));
        assert_eq!(function.contract, Contract::Port(3000.try_into().unwrap()));
        assert_eq!(&function.command[1..], &args.command[1..]);
        assert!(function.command[0].ends_with("/sh"), "{text}");
        (args.port, args.lambda) = (None, Some("app.handler".into()));
        let text = configuration(&args, Path::new("/run/x")).unwrap();
        let config = Config::parse("try", &text).unwrap_or_else(|errors| panic!("{text}\n{errors}"));
        let function = &config.functions[0];
        assert_eq!(
            (function.contract.as_str(), function.handler.as_deref()),
            ("lambda", Some("app.handler"))
        );
    }

    #[test]
    fn a_program_is_found_as_by_a_shell_and_names_its_function() {
        assert!(find("sh", "/nowhere:/bin".as_ref()).unwrap().ends_with("bin/sh"));
        for missing in ["no-such-program", "./no-such-program", "/etc/passwd"] {
            assert!(find(missing, "/bin".as_ref()).is_err(), "{missing}");
        }
        for (program, expected) in [("/a/Server_1.js", "server-1-js"), ("/a/--", "program")] {
            assert_eq!(name(Path::new(program)), expected);
        }
    }
}
