//! Reads a `[[function]]` section.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::contract::{Contract, LAMBDA_CONCURRENCY_MAX};
use super::files::{mounts, secrets};
use super::runtime::NOBODY_ID;
use super::runtime::{Runtime, RuntimeKind};
use super::stop_signal::StopSignal;
use super::{Env, FreezeBackends, Function, MAX_FUNCTION_BACKENDS, Overload, RequireAuth};
use crate::config::{Claimant, Declarations};
use crate::front;
use crate::table::{Table, Value, closest};
use crate::units;

impl Function {
    pub(crate) fn read(mut table: Table<'_>, declared: &mut Declarations) -> Option<Self> {
        let (ms, secs, mins, hours) =
            (Duration::from_millis, Duration::from_secs, Duration::from_mins, Duration::from_hours);
        let name = name(&mut table, declared);
        let id = table.get("id");
        let names_itself = id.is_some();
        let id = id.and_then(|v| function_id(&v, name.as_deref(), declared));
        let listen = table.require("listen", "", |v| listen(&v, name.as_deref(), names_itself, declared));
        let require_auth = table.or("require_auth", RequireAuth::No, |v| require_auth(&v, declared));
        let (hosts, paths) = routes(&mut table, name.as_deref(), require_auth, declared);
        let kind = RuntimeKind::read(&mut table);
        // `docker run` refuses less than 6 MiB.
        let memory_bytes = table.or("memory", 128 << 20, |v| v.size(6 << 20..=1024 << 30));
        let runtime = RuntimeKind::read_keys(kind, &mut table, memory_bytes);
        let contract = Contract::read(&mut table, listen);
        let (has_workdir, has_port) = (table.get("workdir").is_some(), table.get("port").is_some());
        let runtime = runtime.map(|runtime| runtime.with_own(has_workdir, has_port));
        let handler = table.or("handler", None, |v| handler(&v).map(Some));
        let stop_signal = table.or("stop_signal", None, |v| match contract.speaks() {
            true => v.fail("belongs to contract = \"port\" or \"listen-fds\": others are told by SIGTERM"),
            false => v.choice(&StopSignal::WORDS).map(Some),
        });
        let has_image = runtime.as_ref().is_some_and(Runtime::has_image);
        let command = command(&mut table, kind, has_image);
        let max_instances = table.or("max_instances", 16, |v| max_instances(&v));
        let backend_sockets = table.or("backend_sockets", false, |v| v.boolean());
        let backends = table.or("backends", Vec::new(), |v| {
            let names = backends(&v, declared)?;
            if contract != Contract::Headstart && !backend_sockets && !names.is_empty() {
                let contract = contract.as_str();
                return v.fail(format!(
                    "cannot be given to a program of contract = \"{contract}\" as connections: set backend_sockets = true"
                ));
            }
            Some(names)
        });
        let backend_ports = table.or("backend_ports", Vec::new(), |v| {
            v.table("backend_ports = { orders-db = 5432 }").map(|t| backend_ports(&t, &backends))
        });
        match kind {
            _ if backend_ports.is_empty() => {}
            _ if !backend_sockets => table.refuse("backend_ports", "needs backend_sockets = true"),
            _ if backend_ports.iter().any(|(_, port)| contract.uses(*port)) => {
                table.refuse("backend_ports", "cannot have 9001, which is the port of the Runtime API");
            }
            Some(kind) if !kind.has_ports() => {
                let others = RuntimeKind::list(RuntimeKind::has_ports);
                table.refuse("backend_ports", &format!("needs runtime = {others}"));
            }
            Some(_) | None => {}
        }
        let secrets = match kind {
            Some(kind) if !kind.has_secrets() => {
                let others = RuntimeKind::list(RuntimeKind::has_secrets);
                let message = format!("needs runtime = {others}: with another one, show the file by mounts");
                table.refuse("secrets", &message);
                Vec::new()
            }
            Some(_) | None => table.or("secrets", Vec::new(), |v| secrets(&v)),
        };
        let env = table.or("env", Env::default(), |v| v.table("env = { KEY = \"value\" }").map(|t| env(&t)));
        check_size(&mut table, command.as_deref().unwrap_or_default(), &env);
        let stop_after = table.or("stop_after", Some(mins(15)), |v| stop_after(&v));
        let freeze_after = table.or("freeze_after", None, |v| freeze_after(&v, stop_after));
        Some(Self {
            id,
            hosts,
            paths,
            require_auth,
            contract,
            handler,
            env,
            found: String::new(),
            workdir: table.or("workdir", "/".into(), |v| match kind {
                Some(kind) if !kind.has_workdir() => {
                    v.fail("belongs to other runtimes: the image says where its program starts")
                }
                _ => v.absolute_path(),
            }),
            mounts: table.or("mounts", Vec::new(), |v| mounts(&v)),
            secrets,
            backends,
            backend_ports,
            user: NOBODY_ID,
            group: NOBODY_ID,
            namespace_root: None,
            prepared: table.or("prepared", 1, |v| v.integer(0..=64)),
            memory_bytes,
            cpu_millis: table.or("cpu", None, |v| cpu_millis(&v).map(Some)),
            // As cgroup v2 has them (cgroup-v2.rst).
            cpu_weight: table.or("cpu_weight", None, |v| v.integer(1..=10_000).map(Some)),
            io_weight: table.or("io_weight", None, |v| v.integer(1..=10_000).map(Some)),
            // PID_MAX_LIMIT of 64-bit kernels (proc(5), /proc/sys/kernel/pid_max).
            pids: table.or("pids", 512, |v| v.integer(1..=4_194_304)),
            init_timeout: table.or("init_timeout", secs(30), |v| v.duration(ms(100)..=hours(1))),
            stop_signal,
            stop_grace: table.or("stop_grace", secs(10), |v| v.duration(ms(0)..=mins(10))),
            backlog: table.or("backlog", 1024, |v| v.integer(1..=65_535)),
            retry_max: table.or("retry_max", secs(30), |v| v.duration(ms(100)..=hours(1))),
            concurrency: concurrency(&mut table, contract),
            min_ready: table.or("min_ready", 0, |v| kept(&v, max_instances)),
            standby: table.or("standby", 0, |v| standby(&v, max_instances, freeze_after)),
            max_instances,
            queue_timeout: table.or("queue_timeout", secs(30), |v| v.duration(ms(100)..=hours(1))),
            overload: table.or("overload", Overload::Http503, |v| {
                v.choice(&[Overload::Http503, Overload::Http429, Overload::Reset].map(|o| (o.as_str(), o)))
            }),
            freeze_after,
            hibernate_after: table
                .or("hibernate_after", None, |v| hibernate_after(&v, kind, freeze_after, stop_after)),
            stop_after,
            freeze_backends: table.or("freeze_backends", FreezeBackends::Keep, |v| {
                v.choice(&[FreezeBackends::Keep, FreezeBackends::Return].map(|f| (f.as_str(), f)))
            }),
            backend_sockets,
            tls_hand_over: table.or("tls_hand_over", false, |v| match v.boolean()? {
                true if backend_sockets => {
                    v.fail("has no use with backend_sockets, where the agent speaks TLS")
                }
                set => Some(set),
            }),
            start_attempts: table.or("start_attempts", 3, |v| v.integer(1..=10)),
            cooldown: table.or("cooldown", secs(30), |v| v.duration(ms(100)..=hours(1))),
            origin: table.finish(),
            // These come last, when every other key has had its problems reported.
            name: name?,
            listen: listen?,
            runtime: runtime?,
            command: command?,
        })
    }
}

fn name(table: &mut Table<'_>, declared: &mut Declarations) -> Option<String> {
    let line = table.line();
    let name = table.require("name", "", |v| {
        let name = v.name()?;
        match declared.functions.get(&name) {
            Some(line) => v.fail(format!("{name:?} is already the function on line {line}")),
            None => Some(name),
        }
    })?;
    declared.functions.insert(name.clone(), line);
    table.rename(format!("function.{name}"));
    Some(name)
}

fn function_id(value: &Value<'_>, name: Option<&str>, declared: &mut Declarations) -> Option<u32> {
    let id = value.integer(1..=u32::MAX)?;
    if let Some(owner) = declared.ids.get(&id) {
        return value.fail(format!("{id} is already the id of {owner}"));
    }
    declared.ids.insert(id, function_on(name, value.line()));
    Some(id)
}

/// How messages about other functions call the function `name`, of which a key is on `line`.
fn function_on(name: Option<&str>, line: usize) -> String {
    match name {
        Some(name) => format!("function \"{name}\" on line {line}"),
        None => format!("the function on line {line}"),
    }
}

/// What means the function at a front.
fn routes(
    table: &mut Table<'_>,
    name: Option<&str>,
    require_auth: RequireAuth,
    declared: &mut Declarations,
) -> (Vec<String>, Vec<String>) {
    let line = table.line();
    let paths = table.or("paths", Vec::new(), |v| front::paths(&v));
    let hosts = table.or("hosts", Vec::new(), |v| {
        if require_auth == RequireAuth::Connect {
            return v.fail("cannot be with require_auth = \"connect\": a front has no key to connect with");
        }
        let hosts = front::hosts(&v)?;
        match front::claim(declared, &function_on(name, line), &hosts, &paths) {
            Ok(()) => Some(hosts),
            Err(message) => v.fail(message),
        }
    });
    if hosts.is_empty() && table.get("hosts").is_none() {
        table.refuse("paths", "needs hosts: the names under which the paths are");
    }
    (hosts, paths)
}

fn require_auth(value: &Value<'_>, declared: &Declarations) -> Option<RequireAuth> {
    let words = [("wake", RequireAuth::Wake), ("connect", RequireAuth::Connect)];
    let required = value.false_or(RequireAuth::No, &words)?;
    if required != RequireAuth::No && !declared.keys {
        return value.fail("needs the keys of clients: name their file with key_file in [syn]");
    }
    Some(required)
}

fn listen(
    value: &Value<'_>,
    name: Option<&str>,
    names_itself: bool,
    declared: &mut Declarations,
) -> Option<SocketAddr> {
    let address = value.socket_address()?;
    if address.port() == 0 {
        return value.fail("must have a port other than 0: clients need to know it");
    }
    let owner = function_on(name, value.line());
    match declared.listen(address, Claimant::Function { owner, names_itself }) {
        Ok(()) => Some(address),
        Err(message) => value.fail(message),
    }
}

/// The variable of clients of the Runtime API. It is a word in a file of theirs.
fn handler(value: &Value<'_>) -> Option<String> {
    const MAX: usize = 128;
    value.matching(&format!("1 to {MAX} characters without blanks, as in \"app.handler\""), |text| {
        (1..=MAX).contains(&text.len()) && !text.contains(|c: char| c.is_whitespace() || c.is_control())
    })
}

fn concurrency(table: &mut Table<'_>, contract: Contract) -> Option<u32> {
    let Contract::Lambda { .. } = contract else {
        return table.or("concurrency", None, |v| v.integer_or("unlimited", 1..=65_535));
    };
    Some(table.or("concurrency", 1, |v| v.integer(1..=LAMBDA_CONCURRENCY_MAX)))
}

fn command(table: &mut Table<'_>, kind: Option<RuntimeKind>, has_image: bool) -> Option<Vec<String>> {
    let Some(kind) = kind.filter(|kind| kind.needs_command()) else {
        let read = |v: Value<'_>| words(&v).map(|(words, _)| words);
        return Some(table.or("command", Vec::new(), read));
    };
    let read = |v: Value<'_>| {
        let (words, complete) = words(&v)?;
        match words.first() {
            None if complete => v.fail("must not be empty"),
            Some(program) if complete && !program.starts_with('/') => {
                v.fail("must begin with the absolute path of a program")
            }
            _ => Some(words),
        }
    };
    if has_image {
        return Some(table.or("command", Vec::new(), read));
    }
    table.require("command", &kind.because(), read)
}

/// The kernel's limit of an argument and of a variable with its name (`MAX_ARG_STRLEN`, execve(2)), without the NUL.
const WORD_MAX: usize = 32 * 4096 - 1;
const TOO_LONG: &str = "the kernel takes 131071 bytes of a variable with its name, or of an argument: put it into a file, \
                        which mounts or secrets can show";

/// All arguments and variables. The kernel takes a quarter of the stack, mostly 2 MiB, also with the pointers to them.
const WORDS_MAX: usize = 1024 * 1024;

fn check_size(table: &mut Table<'_>, command: &[String], env: &Env) {
    if command.iter().any(|word| word.len() > WORD_MAX) {
        table.refuse("command", &format!("has a word that is too long: {TOO_LONG}"));
    }
    let words = command.iter().map(String::len).sum::<usize>();
    let variables = env.iter().map(|(name, value)| name.len() + 1 + value.len()).sum::<usize>();
    if words + variables > WORDS_MAX {
        let key = if words > variables { "command" } else { "env" };
        table.refuse(key, "is too long: arguments and variables can have 1 MiB together");
    }
}

/// The strings of a list, and whether all its items are strings.
fn words(value: &Value<'_>) -> Option<(Vec<String>, bool)> {
    let items = value.list()?;
    let words: Vec<_> = items.iter().filter_map(|item| item.string().map(str::to_owned)).collect();
    let complete = words.len() == items.len();
    Some((words, complete))
}

/// Thousandths of a processor. Less than ten are no more than the kernel's shortest slice.
fn cpu_millis(value: &Value<'_>) -> Option<u32> {
    let rule = "a number of processors from \"0.01\" to \"1024\", with at most three decimals, as in \"0.5\"";
    let millis = |text: &str| -> Option<u32> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > 3 {
            return None;
        }
        let millis =
            whole.parse::<u32>().ok()?.checked_mul(1000)? + format!("{decimals:0<3}").parse::<u32>().ok()?;
        (10..=1_024_000).contains(&millis).then_some(millis)
    };
    value.matching(rule, |text| millis(text).is_some()).and_then(|text| millis(&text))
}

fn env(table: &Table<'_>) -> Env {
    let read = |(name, value): (&str, Value<'_>)| {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if name.is_empty() || !plain || name.starts_with(|first: char| first.is_ascii_digit()) {
            return value.fail("the name must be letters, digits and \"_\", and not begin with a digit");
        }
        if name.starts_with("HEADSTART_") {
            return value.fail("names that begin with HEADSTART_ are set by the agent");
        }
        let text = value.string()?;
        if name.len() + 1 + text.len() > WORD_MAX {
            return value.fail(format!("is too long: {TOO_LONG}"));
        }
        Some((name.to_owned(), text.to_owned()))
    };
    table.entries().filter_map(read).collect()
}

fn backends(value: &Value<'_>, declared: &Declarations) -> Option<Vec<String>> {
    let items = value.list()?;
    if items.len() > MAX_FUNCTION_BACKENDS {
        return value.fail(format!("must be at most {MAX_FUNCTION_BACKENDS} names, not {}", items.len()));
    }
    let mut names: Vec<String> = Vec::new();
    for item in items {
        let Some(name) = item.string() else { continue };
        if names.iter().any(|other| other == name) {
            item.fail::<()>(format!("{name:?} is listed twice"));
        } else if !declared.backends.contains_key(name) {
            let meant = closest(name, declared.backends.keys().map(String::as_str));
            let hint = meant.map_or(String::new(), |meant| format!(", did you mean \"{meant}\"?"));
            item.fail::<()>(format!("there is no backend {name:?}{hint}"));
        }
        names.push(name.to_owned());
    }
    Some(names)
}

fn backend_ports(table: &Table<'_>, backends: &[String]) -> Vec<(String, u16)> {
    let mut ports: Vec<(String, u16)> = Vec::new();
    for (name, value) in table.entries() {
        if !backends.iter().any(|backend| backend == name) {
            value.fail::<()>("is no backend of this function: add it to backends");
        }
        // Lower ones need a privilege, which the agent has given up when it binds them.
        let Some(port) = value.integer(1024..=65_535) else { continue };
        match ports.iter().find(|(_, other)| *other == port) {
            Some((other, _)) => drop(value.fail::<()>(format!("{port} is the port of {other:?}"))),
            None => ports.push((name.to_owned(), port)),
        }
    }
    ports
}

/// A wrong number is like the largest one, so that `min_ready` and `standby` are not wrong because of it.
fn max_instances(value: &Value<'_>) -> Option<u32> {
    const MOST: u32 = 1_000;
    value.integer(0..=MOST).or(Some(MOST))
}

/// Instances that are kept without a client.
fn kept(value: &Value<'_>, max_instances: u32) -> Option<u32> {
    let kept = value.integer(0..=64)?;
    if kept > max_instances {
        return value.fail(format!("must be at most max_instances, which is {max_instances}"));
    }
    Some(kept)
}

fn standby(value: &Value<'_>, max_instances: u32, freeze_after: Option<Duration>) -> Option<u32> {
    let standby = kept(value, max_instances)?;
    if standby > 0 && freeze_after.is_none() {
        return value.fail("needs freeze_after: instances that never sleep are kept by min_ready");
    }
    Some(standby)
}

/// The range of idle times.
const IDLE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_hours(24);

/// A wrong time is like none, so that `freeze_after` is not wrong because of it.
fn stop_after(value: &Value<'_>) -> Option<Option<Duration>> {
    Some(value.false_or_duration(IDLE).flatten())
}

fn freeze_after(value: &Value<'_>, stop_after: Option<Duration>) -> Option<Option<Duration>> {
    let freeze_after = value.false_or_duration(IDLE)?;
    match (freeze_after, stop_after) {
        (Some(freeze), Some(stop)) if freeze >= stop => {
            let stop = units::show_duration(stop);
            value.fail(format!("must be less than stop_after, which is {stop}"))
        }
        _ => Some(freeze_after),
    }
}

fn hibernate_after(
    value: &Value<'_>,
    kind: Option<RuntimeKind>,
    freeze_after: Option<Duration>,
    stop_after: Option<Duration>,
) -> Option<Option<Duration>> {
    let hibernate_after = value.false_or_duration(IDLE)?;
    let Some(after) = hibernate_after else { return Some(None) };
    if kind.is_some_and(|kind| !kind.hibernates()) {
        return value.fail(format!("needs runtime = {}", RuntimeKind::list(RuntimeKind::hibernates)));
    }
    match (freeze_after, stop_after) {
        (None, _) => value.fail("needs freeze_after: only a frozen instance can be hibernated"),
        (Some(freeze), _) if after <= freeze => {
            let freeze = units::show_duration(freeze);
            value.fail(format!("must be more than freeze_after, which is {freeze}"))
        }
        (_, Some(stop)) if after >= stop => {
            let stop = units::show_duration(stop);
            value.fail(format!("must be less than stop_after, which is {stop}"))
        }
        _ => Some(hibernate_after),
    }
}
