//! A place with certificates, ports, and clients that know them.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Result;
use headstart_integration_tests::lab::site::LIMIT;
use headstart_integration_tests::lab::{
    AgentSetup, RunningAgent, Scratch, binary, build_static, free_port, privilege, run_within, unique,
    workspace,
};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};

pub(crate) fn ready() -> bool {
    let tools = ["curl", "openssl", "h2load", "/usr/bin/python3"];
    privilege::require_root("namespaces") && privilege::require_tools(&tools)
}

/// Certificates, ports, and the program of functions. Removed on drop.
pub(crate) struct Place {
    pub(crate) scratch: Scratch,
    certificates: PathBuf,
    ports: [OnceLock<SocketAddr>; 16],
    /// Where a process without privileges can read it.
    program: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        let scratch = Scratch::new("front").unwrap();
        let certificates = scratch.path().join("certificates");
        fs::create_dir(&certificates).unwrap();
        let program = Path::new("/var/lib").join(unique("function.py"));
        fs::copy(scripts().join("function.py"), &program).unwrap();
        Self { scratch, certificates, ports: [const { OnceLock::new() }; 16], program }
    }

    /// A certificate for these names with its key, valid for 80 years until `until`.
    pub(crate) fn certificate(&self, name: &str, names: &[&str], until: i32) -> PathBuf {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(until - 80, 1, 1), date_time_ymd(until, 1, 1));
        let certificate = params.self_signed(&key).unwrap().pem();
        let trusted = fs::read_to_string(self.ca()).unwrap_or_default();
        fs::write(self.ca(), trusted + &certificate).unwrap();
        let text = format!("{certificate}{}", key.serialize_pem());
        let secret = self.scratch.secret("new.pem", &text).unwrap();
        let file = self.certificates.join(format!("{name}.pem"));
        fs::rename(secret, &file).unwrap();
        file
    }

    /// All certificates that were made, which clients trust.
    fn ca(&self) -> PathBuf {
        self.scratch.path().join("ca.pem")
    }

    /// One of the free ports of this place.
    pub(crate) fn address(&self, number: usize) -> SocketAddr {
        *self.ports[number].get_or_init(|| free_port().unwrap())
    }

    pub(crate) fn front(&self, name: &str, port: usize, keys: &str) -> String {
        let keys = self.filled(keys);
        format!("[[front]]\nname = {name:?}\nlisten = \"{}\"\n{keys}\n", self.address(port))
    }

    /// Fills the place of the certificates in.
    pub(crate) fn filled(&self, keys: &str) -> String {
        keys.replace("CERTIFICATES", &format!("{:?}", self.certificates))
    }

    pub(crate) fn function(&self, name: &str, port: usize, keys: &str) -> String {
        let (address, program) = (self.address(port), self.program.display());
        format!(
            "[[function]]\nname = {name:?}\nlisten = \"{address}\"\nruntime = \"process\"\ncontract = \"port\"\n\
             port = 8080\ncommand = [\"/usr/bin/python3\", \"{program}\"]\nenv = {{ NAME = {name:?} }}\n\
             stop_grace = \"100ms\"\n{keys}\n"
        )
    }

    pub(crate) fn agent(&self, sections: &str) -> AgentSetup {
        let init = build_static("headstart-init", "headstart-init").unwrap();
        AgentSetup::default().setting("init", &format!("{init:?}")).lookup(true).config(sections)
    }

    pub(crate) fn url(&self, scheme: &str, port: usize, host: &str, path: &str) -> String {
        format!("{scheme}://{host}:{}{path}", self.address(port).port())
    }

    fn curl_command(&self, arguments: &[&str]) -> Command {
        self.curl_to(IpAddr::from([127, 0, 0, 1]), arguments)
    }

    /// For whom every host is at this address.
    pub(crate) fn curl_to(&self, address: IpAddr, arguments: &[&str]) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--http1.1", "--noproxy", "*", "--max-time", "20", "--cacert"]).arg(self.ca());
        curl.args(["--connect-to", &format!("::{address}:")]).args(arguments);
        curl
    }

    pub(crate) fn try_curl(&self, arguments: &[&str]) -> Result<String> {
        run_within(LIMIT, &mut self.curl_command(arguments))
    }

    /// What curl prints.
    #[track_caller]
    pub(crate) fn curl(&self, arguments: &[&str]) -> String {
        self.try_curl(arguments).unwrap().trim_end().to_owned()
    }

    /// What curl says when it fails.
    pub(crate) fn curl_fails(&self, arguments: &[&str]) -> String {
        self.try_curl(arguments).unwrap_err().to_string()
    }

    /// What h2load prints, over TLS and HTTP/2.
    pub(crate) fn h2load(&self, port: usize, host: &str, arguments: &[&str]) -> String {
        let address = self.address(port);
        let mut h2load = Command::new("h2load");
        h2load.arg(format!("--connect-to={address}")).args(arguments);
        run_within(LIMIT, h2load.arg(self.url("https", port, host, "/"))).unwrap()
    }

    pub(crate) fn openssl(&self, port: usize, arguments: &[&str]) -> String {
        let address = self.address(port).to_string();
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-connect", &address, "-CAfile"]).arg(self.ca()).args(arguments);
        let output = openssl.stdin(std::process::Stdio::null()).output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    pub(crate) fn python_command(&self, port: usize, host: &str, what: &str) -> Command {
        let mut python = Command::new("/usr/bin/python3");
        python.arg(scripts().join("client.py")).arg(self.address(port).port().to_string());
        python.arg(self.ca()).args([host, what]);
        python
    }

    #[track_caller]
    pub(crate) fn python(&self, port: usize, host: &str, what: &str) -> String {
        run_within(LIMIT, &mut self.python_command(port, host, what)).unwrap()
    }

    /// A command that asks the agent.
    pub(crate) fn headstart(&self, agent: &RunningAgent, command: &str) -> Command {
        let mut headstart = Command::new(binary().unwrap());
        headstart.args([command, "--admin", &agent.admin().to_string()]);
        headstart
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.program);
    }
}

fn scripts() -> PathBuf {
    workspace().join("integration-tests/tests/front")
}
