//! What several tests need.

use headstart_integration_tests::{
    lab::privilege,
    lab::{self, Namespace, Rootfs, Scratch},
};
use std::{
    env,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Longer than anything here takes, short enough that a hanging test is noticed.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Names the part that a copy of this test binary is to play instead of testing.
pub(crate) const ROLE: &str = "HEADSTART_TEST_ROLE";

/// Whether network namespaces can be made here.
pub(crate) fn can_network() -> bool {
    privilege::require_root("network namespaces") && privilege::require_tools(&["ip", "iptables"])
}

/// This test binary again, to run one test only, as a program that plays `role`.
pub(crate) fn copy_of_this_test(test: &str, role: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command
}

/// Whether this process is to play `role`.
pub(crate) fn plays(role: &str) -> bool {
    env::var(ROLE).as_deref() == Ok(role)
}

/// Listens inside `namespace` and sends every line back, until the process ends.
pub(crate) fn echo_server(namespace: &Namespace, address: SocketAddr) {
    let listener = namespace.enter(|| TcpListener::bind(address)).unwrap().unwrap();
    echo(listener);
}

/// Sends back everything that comes in on connections to `listener`.
pub(crate) fn echo(listener: TcpListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// How long connecting takes: the fastest of nine, because other tests share the processors. Runs in the caller's namespace.
pub(crate) fn connect_time(address: SocketAddr) -> Duration {
    let once = || {
        let start = Instant::now();
        TcpStream::connect_timeout(&address, LIMIT).unwrap();
        start.elapsed()
    };
    (0..9).map(|_| once()).min().unwrap()
}

/// A root filesystem with the fixture function, compiled on the spot.
pub(crate) fn plain_function() -> Rootfs {
    let files = Scratch::new("plain").unwrap();
    let binary = files.path().join("plain");
    let source = lab::workspace().join("integration-tests/tests/fixtures/plain.rs");
    let rustc: PathBuf = env::var_os("RUSTC").map_or_else(|| "rustc".into(), Into::into);
    let mut command = Command::new(rustc);
    command.args(["--edition=2024", "-Copt-level=2", "-Ctarget-feature=+crt-static", "-o"]);
    lab::run(command.arg(&binary).arg(source)).unwrap();
    Rootfs::with_binary("plain", &binary).unwrap()
}
