//! A configuration that changes while functions are served.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use headstart_integration_tests::lab::site::{FunctionKind, LIMIT, Site, TestFunction};
use headstart_integration_tests::lab::{
    AgentSetup, Manager, Rootfs, RunningAgent, Scratch, cli, client, fixture, free_port, privilege,
};
use serde_json::Value;

fn ready() -> bool {
    privilege::require_root("containers") && privilege::require_tools(&["runc"])
}

fn get(function: &TestFunction) -> String {
    let reply = client::get(function.local(), "/", LIMIT).unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.body
}

/// What `headstart reload` says, if it succeeds as it should.
fn reload(agent: &RunningAgent, accepted: bool) -> String {
    let said = cli::headstart(&["reload", "--admin", &agent.admin().to_string()]).unwrap();
    assert_eq!(said.code, Some(i32::from(!accepted)), "{}\n{}", said.all, agent.log());
    said.all
}

fn sections(functions: &[(&str, &TestFunction)]) -> String {
    functions.iter().map(|(name, function)| function.text(name, &[])).collect()
}

fn names(agent: &RunningAgent) -> Vec<String> {
    let shown = agent.functions().unwrap();
    shown.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

/// Clients keep coming to those that stay; the kernel half learns of the rest without any privilege.
#[test]
fn functions_are_added_changed_and_removed_while_the_others_serve() {
    if !ready() {
        return;
    }
    let manager = Manager::new().unwrap();
    let [stays, mut changes, mut replaced, mut moves, goes, comes] =
        [(); 6].map(|()| fixture::steady("oci", "").unwrap());
    let mut before = vec![
        ("goes", &goes),
        ("stays", &stays),
        ("changes", &changes),
        ("replaced", &replaced),
        ("moves", &moves),
    ];
    let setup = AgentSetup::default().lookup(true).manager(&manager).config(&sections(&before));
    let agent = setup.start().unwrap();
    for (name, function) in before.drain(..) {
        function.rest(&agent, name).unwrap();
    }
    let [was_stays, was_changes, was_replaced, was_moves, was_goes] =
        [&stays, &changes, &replaced, &moves, &goes].map(get);
    let old_port = moves.local();
    let asked = [&stays, &changes, &replaced].map(|function| function.local());

    changes.keys = "max_instances = 3\nbacklog = 64\n".into();
    replaced.keys = "env = { VERSION = \"2\" }\n".into();
    moves.port = free_port().unwrap().port();
    let after = [
        ("stays", &stays),
        ("changes", &changes),
        ("replaced", &replaced),
        ("moves", &moves),
        ("comes", &comes),
    ];
    agent.rewrite(&sections(&after)).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = asked.map(|address| {
            scope.spawn({
                let stop = &stop;
                move || {
                    while !stop.load(Ordering::Relaxed) {
                        let reply = client::get(address, "/", LIMIT);
                        assert_eq!(reply.as_ref().map(|reply| reply.status).ok(), Some(200), "{reply:?}");
                    }
                }
            })
        });
        let said = reload(&agent, true);
        assert_eq!(said.trim(), "added: comes; changed: changes; replaced: replaced, moves; removed: goes");
        for (name, instance) in [("replaced", &was_replaced), ("moves", &was_moves)] {
            let is_new = |function: &Value| {
                function["state"] != "closed"
                    && function["running"].as_array().unwrap().iter().all(|one| one["name"] != **instance)
            };
            agent.wait_function(name, "new", LIMIT, is_new).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });

    assert_eq!((get(&stays), get(&changes)), (was_stays, was_changes));
    let shown = agent.wait_function("changes", "changed", LIMIT, |one| one["max_instances"] == 3).unwrap();
    assert_eq!(shown["instances"], 1, "{shown}");
    assert_ne!(get(&replaced), was_replaced);
    assert_ne!(get(&moves), was_moves);
    comes.rest(&agent, "comes").unwrap();
    get(&comes);
    let starts = agent.starts().unwrap();
    let start = starts.as_array().unwrap().iter().rfind(|start| start["function"] == "comes").unwrap();
    assert_eq!(start["trigger"], "lookup", "the kernel half knows it: {start}");

    let gone = |what: &str, address| {
        cli::eventually(what, LIMIT, || Ok(TcpStream::connect(address).is_err().then_some(()))).unwrap();
    };
    gone("the port of the removed one is closed", goes.local());
    gone("the port it moved from is closed", old_port);
    cli::eventually("they are forgotten", LIMIT, || Ok((names(&agent).len() == 5).then_some(()))).unwrap();
    let mut names = names(&agent);
    names.sort_unstable();
    assert_eq!(names, ["changes", "comes", "moves", "replaced", "stays"]);
    assert!(!agent.log().contains(&format!("{was_goes} cannot")));
    // A listener for each function, and control socket and page of its one instance.
    let needed = 5 * 3;
    cli::eventually("the manager keeps what is needed", LIMIT, || {
        Ok((manager.stored()?.len() == needed).then_some(()))
    })
    .unwrap();

    // What has gone can come back, on the port that it had.
    let back = [after.as_slice(), &[("goes", &goes)]].concat();
    agent.rewrite(&sections(&back)).unwrap();
    assert_eq!(reload(&agent, true).trim(), "added: goes");
    goes.rest(&agent, "goes").unwrap();
    assert_ne!(get(&goes), was_goes);
    let applied = [("outcome", "applied")];
    assert!((agent.metrics().unwrap().sum("headstart_reloads_total", &applied) - 2.0).abs() < f64::EPSILON);
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_configuration_that_cannot_be_had_changes_nothing_and_says_why() {
    if !ready() {
        return;
    }
    let [mut serves, other, new] = [(); 3].map(|()| fixture::steady("process", "").unwrap());
    let before = sections(&[("serves", &serves), ("other", &other)]);
    let agent = AgentSetup::default().config(&before).start().unwrap();
    serves.rest(&agent, "serves").unwrap();
    let instance = get(&serves);
    let taken = std::net::TcpListener::bind(new.local()).unwrap();
    let with = |text: &str| format!("{before}\n{text}");
    let new_text = new.text("new", &[]);
    let port = |port: u16| new_text.replace(&format!(":{}\"", new.port), &format!(":{port}\""));
    let free = free_port().unwrap().port();
    let missing = port(free).replace("command = [\"", "command = [\"/nowhere");
    let missing_backend = format!(
        "[[backend]]\nname = \"db\"\nkind = \"postgres\"\naddress = \"127.0.0.1:5\"\nuser = \"u\"\ndatabase = \"d\"\n\
         password_file = \"/nowhere\"\n{}",
        port(free)
    );
    let oci = fixture::steady("oci", "").unwrap();
    let file = fs::read_to_string(agent.config()).unwrap();
    let syn_changed = file.replace("lookup = false", "lookup = true");
    for (text, reason) in [
        (with("[[function]\n"), "headstart.toml:"),
        (with(&new_text), "is in use"),
        (with(&missing), "/nowhere"),
        (with(&missing_backend), "/nowhere"),
        (with(&oci.text("oci", &[])), "capabilities that the agent gave up"),
    ] {
        agent.rewrite(&text).unwrap();
        let said = reload(&agent, false);
        assert!(said.contains("everything stays as it was") && said.contains(reason), "{reason}: {said}");
    }
    fs::write(agent.config(), syn_changed).unwrap();
    let said = reload(&agent, false);
    assert!(said.contains("[syn]") && said.contains("restart the agent"), "{said}");
    let refused = [("outcome", "refused")];
    assert!((agent.metrics().unwrap().sum("headstart_reloads_total", &refused) - 6.0).abs() < f64::EPSILON);

    assert_eq!(names(&agent), ["serves", "other"]);
    assert_eq!(get(&serves), instance);
    drop(taken);
    agent.rewrite(&with(&new_text)).unwrap();
    assert_eq!(reload(&agent, true).trim(), "added: new");
    get(&new);
    // An operator turns it off, and on again.
    for (keys, state) in [("max_instances = 0\n", "off"), ("", "cold")] {
        serves.keys = keys.into();
        agent.rewrite(&sections(&[("serves", &serves), ("other", &other), ("new", &new)])).unwrap();
        assert_eq!(reload(&agent, true).trim(), "changed: serves");
        agent.stop_function("serves").unwrap();
        agent.wait_state("serves", state, LIMIT).unwrap();
    }
    assert!(agent.stop().unwrap().success());
}

/// No client is refused: those that come while the old instances end wait for the new ones.
#[test]
fn functions_are_renamed_and_change_their_ports() {
    if !ready() {
        return;
    }
    let manager = Manager::new().unwrap();
    let mut functions = [(); 3].map(|()| fixture::steady("process", "").unwrap());
    let [one, two, three] = functions.each_ref();
    let before = sections(&[("one", one), ("two", two), ("three", three)]);
    let agent = AgentSetup::default().manager(&manager).config(&before).start().unwrap();
    let asked = functions.each_ref().map(|function| function.local());
    for (function, name) in functions.iter().zip(["one", "two", "three"]) {
        function.rest(&agent, name).unwrap();
        assert!(get(function).starts_with(name));
    }
    let ports = functions.each_ref().map(|function| function.port);
    (functions[0].port, functions[1].port) = (ports[1], ports[0]);
    let [one, two, three] = functions.each_ref();
    let after = sections(&[("one", one), ("two", two), ("four", three)]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = asked.map(|address| {
            scope.spawn({
                let stop = &stop;
                move || {
                    while !stop.load(Ordering::Relaxed) {
                        let reply = client::get(address, "/", LIMIT);
                        assert_eq!(reply.as_ref().map(|reply| reply.status).ok(), Some(200), "{reply:?}");
                    }
                }
            })
        });
        agent.rewrite(&after).unwrap();
        assert_eq!(reload(&agent, true).trim(), "added: four; replaced: one, two; removed: three");
        for (function, name) in [(one, "one"), (two, "two"), (three, "four")] {
            cli::eventually("it has its port", LIMIT, || Ok(get(function).starts_with(name).then_some(())))
                .unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    assert_eq!(reload(&agent, true).trim(), "no function has changed");
    let mut names = names(&agent);
    names.sort_unstable();
    assert_eq!(names, ["four", "one", "two"]);
    assert!(agent.stop().unwrap().success());
}

/// Its instances do not stop before they are killed. A reload meanwhile forgets nobody.
#[test]
fn a_function_waits_for_the_listener_of_another() {
    if !ready() {
        return;
    }
    let function = fixture::function("stubborn", "process", "stop_grace = \"1s\"").unwrap();
    let agent = AgentSetup::default().config(&sections(&[("old", &function)])).start().unwrap();
    function.rest(&agent, "old").unwrap();
    get(&function);
    agent.rewrite(&sections(&[("new", &function)])).unwrap();
    assert_eq!(reload(&agent, true).trim(), "added: new; removed: old");
    assert_eq!(reload(&agent, true).trim(), "still not served: new");
    agent.wait_function("new", "served", LIMIT, |function| function["state"] == "cold").unwrap();
    assert_eq!(names(&agent), ["new"]);
    get(&function);
    assert_eq!(reload(&agent, true).trim(), "no function has changed");
    assert!(agent.stop().unwrap().success());
}

/// As deployments do it: a link leads to the version that is current, or a program is replaced where it is.
#[test]
fn a_root_file_system_that_changes_has_new_instances() {
    if !ready() {
        return;
    }
    let [function, next] = [(); 2].map(|()| fixture::steady("oci", "").unwrap());
    let (FunctionKind::Oci(first), FunctionKind::Oci(second)) = (&function.kind, &next.kind) else {
        panic!()
    };
    let links = Scratch::new("links").unwrap();
    let current = links.path().join("current");
    let lead_to = |rootfs: &Rootfs| {
        let new = links.path().join("new");
        std::os::unix::fs::symlink(rootfs.path(), &new).unwrap();
        fs::rename(new, &current).unwrap();
    };
    lead_to(first);
    let text = function.text("f", &[]).replace(first.path().to_str().unwrap(), current.to_str().unwrap());
    let agent = AgentSetup::default().config(&text).start().unwrap();
    function.rest(&agent, "f").unwrap();
    let mut instance = get(&function);
    assert_eq!(reload(&agent, true).trim(), "no function has changed");
    assert_eq!(get(&function), instance);
    let program = second.path().join("steady");
    let changes: [&dyn Fn(); 2] = [&|| lead_to(second), &|| {
        let new = program.with_extension("new");
        fs::copy(&program, &new).unwrap();
        fs::rename(new, &program).unwrap();
    }];
    for change in changes {
        change();
        assert_eq!(reload(&agent, true).trim(), "replaced: f");
        function.rest(&agent, "f").unwrap();
        assert_ne!(get(&function), std::mem::replace(&mut instance, get(&function)));
    }
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_backend_that_changes_has_a_new_pool_and_its_functions_new_instances() {
    if !ready() {
        return;
    }
    let site = Site::new(Duration::ZERO, Duration::ZERO).unwrap();
    let function = TestFunction::example("orders", "oci").unwrap();
    let agent = site.agent(false, &function).unwrap();
    assert_eq!(site.get(function.port, "/").unwrap().status, 200);
    let text = function.text("orders", &["orders-db"]);
    let write = |pool: &str| agent.rewrite(&format!("{}{text}", site.backend(pool).unwrap())).unwrap();
    write("{ min_idle = 1, max = 16 }");
    assert_eq!(reload(&agent, true).trim(), "replaced: orders");
    cli::eventually("the new pool is filled", LIMIT, || {
        let pools: Value = serde_json::from_str(&agent.ask("GET", "/api/v1/backends")?.body)?;
        Ok((pools.as_array().is_some_and(|pools| pools.len() == 1) && pools[0]["idle"] == 1).then_some(()))
    })
    .unwrap();
    function.rest(&agent, "orders").unwrap();
    assert_eq!(site.get(function.port, "/").unwrap().status, 200);
    // Not even the comments are news.
    write("{ min_idle = 1, max = 16 } # as before");
    assert_eq!(reload(&agent, true).trim(), "no function has changed");

    // A new password is, though the configuration says the same.
    site.postgres.admin_sql("alter role app password 'an0ther-s3cret'").unwrap();
    fs::write(site.postgres.password_file().unwrap(), "an0ther-s3cret").unwrap();
    assert_eq!(reload(&agent, true).trim(), "replaced: orders");
    function.rest(&agent, "orders").unwrap();
    assert_eq!(site.get(function.port, "/").unwrap().status, 200);
    let since = "select count(*) from pg_stat_activity where usename = 'app'";
    cli::eventually("only new sessions are left", LIMIT, || {
        Ok((site.postgres.admin_sql(since)? == "2").then_some(()))
    })
    .unwrap();
    assert!(agent.stop().unwrap().success());
}
