//! The parts that need no container.

use super::*;
use crate::start::logs::Logs;
use crate::start::pid_watch::PidWatch;

#[test]
fn the_last_dash_separates_function_and_instance() {
    assert!(name::belongs("a-1", "a") && name::belongs("a-b-1", "a-b"));
    for (instance, function) in [("a-b-1", "a"), ("a", "a"), ("a-", "a"), ("ab-1", "a"), ("", "")] {
        assert!(!name::belongs(instance, function), "{instance} {function}");
    }
}

#[test]
fn exits_read_as_sentences() {
    let exit = |code, signal, oom| Exit { code, signal, oom }.to_string();
    assert_eq!(exit(Some(3), None, false), "exit code 3");
    assert_eq!(exit(None, Some(9), false), "killed by signal 9");
    assert_eq!(exit(None, Some(9), true), "out of memory");
    assert_eq!(exit(None, None, false), "gone, status unknown");
}

#[test]
fn the_environment_has_a_path_and_one_control_descriptor() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut spec = ContainerSpec {
        function: "f".to_owned(),
        command: Vec::new(),
        env: vec![pair("HEADSTART_CONTROL_FD", "9")],
        memory_bytes: 0,
        swaps: false,
        pids: 0,
        shares: Shares::default(),
        user: 65534,
        group: 65534,
        namespace_root: None,
        mounts: Vec::new(),
        secrets: Vec::new(),
        backends: false,
        init: Init { file: "/nowhere/init".into(), contract: Vec::new() },
        adapter: None,
        workdir: "/".into(),
    };
    let expected = [pair("PATH", DEFAULT_PATH), pair("HEADSTART_CONTROL_FD", "3")];
    assert_eq!(spec.environment_with_control(), expected);
    spec.env.push(pair("PATH", "/opt"));
    assert_eq!(spec.environment(), [pair("PATH", "/opt")]);
}

#[test]
fn only_the_hidden_mode_is_a_park_invocation() {
    let is = |args: &[&str]| process::park::is_park_invocation(args.iter().map(Into::into));
    assert!(is(&["headstart", "__park", "f-1"]) && is(&["headstart", "__park-inner", "f-1"]));
    assert!(!is(&["headstart"]) && !is(&["__park"]) && !is(&["headstart", "run", "__park"]));
}

#[tokio::test]
async fn output_is_cut_into_bounded_lines() {
    let text = [b"one\r\ntwo\n\n".as_slice(), &[b'x'; 5000], b"\nbad \xff end"].concat();
    let output = std::io::Cursor::new(text);
    let logs = Logs::follow("f", "f-1", output);
    assert_eq!(logs.last(SOON).await, "bad \u{fffd} end");
    let logs = Logs::follow("f", "f-1", std::io::Cursor::new(vec![b'x'; 5000]));
    assert_eq!(logs.last(SOON).await.len(), 5000 - 4096);
}

#[tokio::test]
async fn output_outlives_its_reader_and_is_followed_again() {
    let (output, stdout) = super::super::logs::pipe().unwrap();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "read go; echo one; read go; echo two"]);
    let mut child = command.stdin(std::process::Stdio::piped()).stdout(stdout).spawn().unwrap();
    drop(command);
    // As when the agent is killed.
    drop(output);
    let mut stdin = child.stdin.take().unwrap();
    let mut go = || std::io::Write::write_all(&mut stdin, b"\n").unwrap();
    go();
    let pid = child.id() as i32;
    // That of a survivor takes nothing from the agent that takes the instance over.
    let _unread = local::output_of("f-1", pid).expect("a pipe");
    let logs = local::follow_again("f-1", pid).expect("a pipe");
    go();
    assert_eq!(logs.last(SOON).await, "two");
    assert!(child.wait().unwrap().success(), "no line was its end");
}

/// As a creation that the earlier agent did not live to see the end of.
#[tokio::test]
async fn what_is_still_being_made_is_ended_first() {
    let state = tempfile::tempdir().unwrap();
    let bundle = state.path().join("oci/f-1");
    std::fs::create_dir_all(&bundle).unwrap();
    let agent = Agent { state_dir: state.path().to_owned(), runc: "/no/runc".into(), ..Agent::default() };
    let mut command = std::process::Command::new("sleep");
    let mut other = command.arg("59").spawn().unwrap();
    let mut command = std::process::Command::new("sh");
    let mut child = command
        .args(["-c", "echo begun; read forever", "sh"])
        .arg(&bundle)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // A process that has only just exec'd has no command line yet.
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
    let survivors = oci::driver(&agent).survivors().await.unwrap();
    assert!(survivors.len() == 1 && !survivors[0].runs());
    survivors[0].remove().await.unwrap();
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert!(!bundle.exists());
    assert!(other.try_wait().unwrap().is_none(), "another process");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_parked_image_is_read_back() {
    let image = pid_watch::Image::of(std::process::id() as i32).unwrap();
    assert_eq!(pid_watch::Image::parse(&image.to_line()), Some(image));
    for strange in ["", "1", "1 2", "x 2 name", "1 y name"] {
        assert_eq!(pid_watch::Image::parse(strange), None, "{strange:?}");
    }
}

#[tokio::test]
async fn a_child_is_watched_to_its_end() {
    #[expect(clippy::zombie_processes, reason = "the watch waits for it")]
    let child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let watch = PidWatch::child(child.id() as i32, || true).unwrap();
    assert_eq!(watch.now(), None);
    watch.signal(rustix::process::Signal::KILL);
    let exit = watch.exited().await;
    assert_eq!(exit, Exit { code: None, signal: Some(9), oom: true });
    assert_eq!(watch.now(), Some(exit));
    watch.signal(rustix::process::Signal::KILL);
}

#[test]
fn the_longest_function_name_has_instances_with_a_host_name() {
    use super::super::name::{check, host};
    let function = "f".repeat(63);
    let instance = format!("{function}-0123456789abcdef");
    check(&instance, &function).unwrap();
    let host = host(&instance);
    assert!(host.len() <= 64 && host.ends_with("-0123456789abcdef"), "{host}");
    assert_eq!(super::super::name::host("f-1"), "f-1");
}
