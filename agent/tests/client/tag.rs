//! `headstart tag` as a user runs it: what is on the wire, and what is left afterwards.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread;

use headstart_ebpf::option::{FunctionOption, KIND};
use nix::sys::signal::Signal;

use crate::common::{PROGRAM, headstart, in_namespace, key_file, nothing_ignored, root, said};
use crate::lab::{Cgroup, Running, Wire, ip, listen, own_cgroup};

const PORT: u16 = 8081;
/// TCP Fast Open (RFC 7413), in the lengths of a request for a cookie and of a cookie.
const FAST_OPEN: u8 = 34;

/// A program that connects, through a socket of the family that `host` is written in.
fn connect(host: &str, port: u16) -> [String; 3] {
    ["bash".to_owned(), "-c".to_owned(), format!("exec 3<>/dev/tcp/{host}/{port}")]
}

/// Runs `command` under `headstart tag` with `arguments`.
fn run<S: AsRef<std::ffi::OsStr>>(arguments: &str, command: &[S]) -> (i32, String) {
    said(&headstart(&format!("tag {arguments} --")).args(command).output().expect("headstart runs"))
}

/// In a namespace with a listener on every address: what `work` does with the wire.
fn on_the_wire(work: impl FnOnce(&mut Wire, &TcpListener) + Send) {
    if !root() {
        return;
    }
    in_namespace(|| {
        ip("link set lo up");
        let listener = listen(PORT);
        work(&mut Wire::tap(), &listener);
    });
}

#[test]
fn ipv4_ipv6_and_mapped_connections_name_the_function_and_prove_the_key() {
    on_the_wire(|wire, _| {
        let keys = key_file();
        for (to, host) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1"), ("127.0.0.1", "::ffff:127.0.0.1")] {
            let arguments =
                format!("--function 16909060 --to {to}:{PORT} --key-file {}/keys", keys.path().display());
            assert_eq!(run(&arguments, &connect(host, PORT)), (0, String::new()));
            let syn = wire.syn();
            assert_eq!((syn.function().function, syn.verified()), (0x0102_0304, Some(2)), "{host}: {syn:x?}");
        }
    });
}

#[test]
fn without_a_key_the_function_is_named_and_nothing_proved() {
    on_the_wire(|wire, _| {
        assert_eq!(run(&format!("--function 7 --to 127.0.0.1:{PORT}"), &connect("127.0.0.1", PORT)).0, 0);
        assert_eq!(wire.syn().function(), FunctionOption::open(7));
    });
}

#[test]
fn the_default_function_can_be_authenticated_for() {
    on_the_wire(|wire, _| {
        let keys = key_file();
        let arguments =
            format!("--function 0 --to localhost:{PORT} --key-file {}/keys", keys.path().display());
        assert_eq!(run(&arguments, &connect("127.0.0.1", PORT)).0, 0);
        let syn = wire.syn();
        assert_eq!((syn.function().function, syn.verified()), (0, Some(2)));
    });
}

#[test]
fn other_ports_and_addresses_get_no_option() {
    on_the_wire(|wire, _| {
        let _other = listen(PORT + 1);
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{} 4<>/dev/tcp/127.0.0.2/{PORT} 5<>/dev/tcp/::1/{PORT} 6<>/dev/tcp/127.0.0.1/{PORT}",
            PORT + 1
        );
        assert_eq!(run(&format!("--function 7 --to 127.0.0.1:{PORT}"), &["bash", "-c", &script]).0, 0);
        assert_eq!([(); 4].map(|()| wire.syn().has(KIND)), [false, false, false, true]);
    });
}

#[test]
fn any_address_means_those_of_both_families() {
    on_the_wire(|wire, _| {
        for to in ["0.0.0.0", "[::]"] {
            for host in ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1"] {
                assert_eq!(run(&format!("--function 7 --to {to}:{PORT}"), &connect(host, PORT)).0, 0);
                assert_eq!(wire.syn().function(), FunctionOption::open(7), "{to}, {host}");
            }
        }
    });
}

#[test]
fn an_unmodified_program_gets_its_page() {
    on_the_wire(|wire, listener| {
        let page = thread::scope(|scope| {
            scope.spawn(|| {
                let (mut client, _) = listener.accept().unwrap();
                let _request = client.read(&mut [0; 4096]).unwrap();
                client.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi").unwrap();
            });
            let url = format!("http://127.0.0.1:{PORT}/");
            headstart(&format!("tag --function 7 --to 127.0.0.1:{PORT} -- busybox wget -q -O - {url}"))
                .output()
        });
        assert_eq!(page.unwrap().stdout, b"hi");
        assert_eq!(wire.syn().function(), FunctionOption::open(7));
    });
}

#[test]
fn a_retransmitted_syn_carries_the_option_again() {
    if !root() {
        return;
    }
    in_namespace(|| {
        // Nobody at the other end of this link takes what is sent to that neighbour.
        ip("link add far type veth peer name gone");
        ip("address add 192.0.2.1/24 dev far");
        ip("link set far up");
        ip("link set gone up");
        ip("neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev far");
        let (mut wire, keys) = (Wire::tap(), key_file());
        let mut command = headstart(&format!(
            "tag --function 7 --to 192.0.2.2:{PORT} --key-file {}/keys -- bash -c",
            keys.path().display()
        ));
        command.arg(format!("echo ready; exec 3<>/dev/tcp/192.0.2.2/{PORT}"));
        let (running, _) = Running::start(command);
        let (first, second) = (wire.syn(), wire.syn());
        assert_eq!(first.isn, second.isn);
        assert_eq!([first.verified(), second.verified()], [Some(2), Some(2)]);
        assert_eq!(running.end(Signal::SIGTERM), Some(128 + 15));
    });
}

#[test]
fn a_syn_with_a_fast_open_cookie_has_no_room_and_goes_out_as_it_is() {
    on_the_wire(|wire, _| {
        // Client and server, for every listener from now on (ip-sysctl.rst); of this namespace only.
        fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1027").unwrap();
        let port = PORT + 1;
        let listener = listen(port);
        // TCP_FASTOPEN_CONNECT is 30 (include/uapi/linux/tcp.h).
        let script = format!(
            "use Socket; socket(S, AF_INET, SOCK_STREAM, 0) && setsockopt(S, 6, 30, 1) && \
             connect(S, pack_sockaddr_in({port}, inet_aton('127.0.0.1'))) && syswrite(S, 'hello') && \
             sysread(S, $answer, 1) or die $!"
        );
        let twice = "perl -e \"$0\" && perl -e \"$0\"";
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2 {
                    let (mut client, _) = listener.accept().unwrap();
                    client.read_exact(&mut [0; 5]).unwrap();
                    client.write_all(b"!").unwrap();
                }
            });
            let outcome = run(&format!("--function 7 --to 127.0.0.1:{port}"), &["sh", "-c", twice, &script]);
            assert_eq!(outcome, (0, String::new()));
        });
        let (request, cookie) = (wire.syn(), wire.syn());
        assert!(request.has(FAST_OPEN) && request.data == 0, "{request:x?}");
        assert_eq!(request.function(), FunctionOption::open(7), "a request for a cookie leaves room");
        assert!(cookie.has(FAST_OPEN) && cookie.data == 5, "{cookie:x?}");
        assert!(!cookie.has(KIND), "{cookie:x?}");
    });
}

#[test]
fn a_cgroup_is_tagged_until_a_signal_and_not_a_moment_longer() {
    on_the_wire(|wire, _| {
        let cgroup = Cgroup::new();
        for (signal, code) in [
            (Signal::SIGTERM, Some(0)),
            (Signal::SIGINT, Some(0)),
            (Signal::SIGHUP, Some(0)),
            (Signal::SIGKILL, None),
        ] {
            let (running, line) = Running::start(headstart(&format!(
                "tag --cgroup {} --function 7 --to 127.0.0.1:{PORT}",
                cgroup.path().display()
            )));
            assert_eq!(line, format!("tagging SYNs to 127.0.0.1:{PORT} for function 7; Ctrl-C ends it\n"));
            cgroup.connect("127.0.0.1", PORT);
            assert_eq!(wire.syn().function(), FunctionOption::open(7));
            assert_eq!(running.end(signal), code);
            cgroup.connect("127.0.0.1", PORT);
            assert!(!wire.syn().has(KIND), "after {signal}");
        }
    });
}

#[test]
fn two_can_tag_one_cgroup() {
    on_the_wire(|wire, _| {
        let (cgroup, _other) = (Cgroup::new(), listen(PORT + 1));
        let path = cgroup.path().display();
        let tag = |function, port| {
            let to = format!("--function {function} --to 127.0.0.1:{port}");
            Running::start(headstart(&format!("tag --cgroup {path} {to}"))).0
        };
        let (_seven, eight) = (tag(7, PORT), tag(8, PORT + 1));
        let mut both = |first: u32, second: Option<u32>| {
            cgroup.connect("127.0.0.1", PORT);
            assert_eq!(wire.syn().function().function, first);
            cgroup.connect("127.0.0.1", PORT + 1);
            let syn = wire.syn();
            assert_eq!(syn.has(KIND).then(|| syn.function().function), second);
        };
        both(7, Some(8));
        assert_eq!(eight.end(Signal::SIGTERM), Some(0));
        both(7, None);
    });
}

/// Cgroups that the process `id` has made and left.
fn left_by(id: u32) -> Vec<String> {
    let own = fs::read_dir(own_cgroup()).expect("it is a directory");
    let names = own.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(&format!("headstart-tag-{id}-"))).collect()
}

#[test]
fn the_commands_exit_code_is_ours_and_its_cgroup_goes() {
    if !root() {
        return;
    }
    for (command, code, message) in [
        (vec!["true"], 0, ""),
        (vec!["sh", "-c", "exit 7"], 7, ""),
        (vec!["sh", "-c", "exit 255"], 255, ""),
        (vec!["sh", "-c", "kill -KILL $$"], 128 + 9, ""),
        (vec!["sh", "-c", "kill -TERM $$"], 128 + 15, ""),
        (vec!["/nonexistent/command"], 127, "/nonexistent/command cannot be executed: No such file"),
        (vec!["/etc/passwd"], 126, "/etc/passwd cannot be executed: Permission denied"),
    ] {
        let child = headstart("tag --function 7 --to 127.0.0.1:1 --")
            .args(&command)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let id = child.id();
        let (ended, text) = said(&child.wait_with_output().unwrap());
        assert_eq!(ended, code, "{command:?}: {text}");
        assert_eq!(text.is_empty(), message.is_empty(), "{command:?}: {text}");
        assert!(text.contains(message), "{command:?}: {text}");
        assert_eq!(left_by(id), [""; 0], "{command:?}");
    }
}

#[test]
fn a_command_runs_in_a_cgroup_of_its_own_and_with_our_input_and_output() {
    if !root() {
        return;
    }
    let mut child = headstart("tag --function 7 --to 127.0.0.1:1 -- sh -c")
        .arg("grep ^0:: /proc/self/cgroup; cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id();
    child.stdin.take().unwrap().write_all(b"from outside").unwrap();
    let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let (cgroup, input) = text.split_once('\n').unwrap();
    assert!(cgroup.contains(&format!("/headstart-tag-{id}-")), "{cgroup}");
    assert_eq!(input, "from outside");
}

#[test]
fn signals_reach_the_command_which_decides() {
    if !root() {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let name = signal.as_str().strip_prefix("SIG").unwrap();
        let mut command = headstart("tag --function 7 --to 127.0.0.1:1 -- bash -c");
        // Left alone, it would end with 3 after a minute.
        command.arg(format!("trap 'exit 9' {name}; echo ready; read -t 60; exit 3")).stdin(Stdio::piped());
        let (running, line) = Running::start(command);
        assert_eq!(line, "ready\n");
        let id = running.id();
        assert_eq!(running.end(signal), Some(9), "{signal}");
        assert_eq!(left_by(id), [""; 0]);
    }
}

#[test]
fn a_signal_that_was_ignored_before_stays_ignored() {
    if !root() {
        return;
    }
    let tag = "tag --function 7 --to 127.0.0.1:1 -- grep SigIgn /proc/self/status";
    let ignored = |first: &str| {
        let mut command = nothing_ignored();
        command.args(["bash", "-c", &format!("{first} exec \"$@\""), "-", PROGRAM]);
        let output = command.args(tag.split_whitespace()).output().unwrap();
        let line = String::from_utf8(output.stdout).unwrap();
        u64::from_str_radix(line.trim().strip_prefix("SigIgn:\t").unwrap(), 16).unwrap() & 0b111
    };
    assert_eq!(ignored(""), 0);
    assert_eq!(ignored("trap '' HUP QUIT;"), 0b101);
}

#[test]
fn what_a_command_leaves_running_goes_on_outside() {
    if !root() {
        return;
    }
    let mut child = headstart("tag --function 7 --to 127.0.0.1:1 -- bash -c")
        .arg("{ grep ^0:: /proc/self/cgroup; read; grep ^0:: /proc/self/cgroup; } <&0 & exit 5")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Kept open: to wait for a child closes its input.
    let (id, mut input) = (child.id(), child.stdin.take().unwrap());
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert_eq!(left_by(id), [""; 0]);
    input.write_all(b"\n").unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let last = text.lines().last().unwrap().to_owned();
    assert!(!last.contains("headstart-tag"), "{text}");
    assert!(last.starts_with("0::"), "{text}");
}

#[test]
fn three_capabilities_are_enough_and_named_when_they_lack() {
    if !root() {
        return;
    }
    let cgroup = Cgroup::new();
    let tag = headstart(&format!("tag --function 7 --to 127.0.0.1:1 --cgroup {}", cgroup.path().display()));
    let with = |bounding_set: &str| {
        let mut command = Command::new("setpriv");
        command.arg(format!("--bounding-set={bounding_set}")).arg("--inh-caps=-all");
        command.arg(tag.get_program()).args(tag.get_args());
        command
    };
    let (running, line) = Running::start(with("-all,+bpf,+net_admin,+perfmon"));
    assert!(line.starts_with("tagging SYNs"), "{line}");
    assert_eq!(running.end(Signal::SIGTERM), Some(0));
    for too_few in ["-all", "-all,+bpf,+perfmon", "-all,+net_admin,+perfmon"] {
        let (code, text) = said(&with(too_few).output().unwrap());
        assert_eq!(code, 1, "{too_few}: {text}");
        assert!(text.contains("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"), "{too_few}: {text}");
    }
}

#[test]
fn bad_usage_ends_with_2_and_says_what_to_do() {
    let keys = key_file();
    let dir = keys.path().display().to_string();
    for (arguments, expected) in [
        ("--function 7 --to 127.0.0.1:1", "COMMAND"),
        ("--function 7 --to 127.0.0.1:1 --cgroup /sys -- true", "cannot be used with"),
        ("--function 7 --to 127.0.0.1 -- true", "there is no port"),
        ("--to 127.0.0.1:1 -- true", "--function"),
        ("--function 4294967296 --to 127.0.0.1:1 -- true", "--function"),
        ("--function 0 --to 127.0.0.1:1 -- true", "--key-file"),
        ("--function 7 --to 127.0.0.1:1 --key 1 -- true", "--key-file"),
        ("--function 7 --to 127.0.0.1:1 --key-file DIR/keys --key 9 -- true", "number 1, 2; choose"),
        ("--function 7 --to 127.0.0.1:1 --key-file DIR -- true", "not a regular file"),
        ("--function 7 --to 127.0.0.1:1 --cgroup DIR", "is not a directory of cgroup v2; cgroup v2 is"),
        ("--function 7 --to 127.0.0.1:1 --cgroup DIR/none", "cannot be opened"),
        ("--function 7 --to 127.0.0.1:1 --cgroup /proc/self/status", "is not a directory of cgroup v2"),
    ] {
        let output = headstart(&format!("tag {}", arguments.replace("DIR", &dir))).output().unwrap();
        let (code, text) = said(&output);
        assert_eq!(code, 2, "{arguments}: {text}");
        assert!(text.contains(expected), "{arguments}: {text}");
    }
}
