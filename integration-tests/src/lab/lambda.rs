//! Handlers for AWS Lambda as functions, with the clients of its Runtime API as their makers publish them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::command::run_within;
use super::{free_port, privilege, target_dir, unique};

/// The clients, at versions that are written down here.
pub const PYTHON_CLIENT: &str = "awslambdaric==4.2.2";
/// A driver that handlers find beside it.
const PYTHON_DRIVER: &str = "psycopg[binary]==3.3.9";
/// It has a native part, which npm compiles.
pub const NODE_CLIENT: &str = "aws-lambda-ric@4.0.2";

/// The longest installation: npm compiles curl.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// Where an instance sees a client, and the handler's code.
const CLIENT: &str = "/opt/client";
const CODE: &str = "/var/task";

/// The client for Python, installed once.
pub fn python_client() -> Result<PathBuf> {
    installed(&format!("{PYTHON_CLIENT}-{PYTHON_DRIVER}"), |new| {
        let mut pip = Command::new("/usr/bin/python3");
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--target"]);
        pip.arg(new).args([PYTHON_CLIENT, PYTHON_DRIVER]);
        pip
    })
}

/// The client for node, compiled once.
pub fn node_client() -> Result<PathBuf> {
    installed(NODE_CLIENT, |new| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(new).arg(NODE_CLIENT);
        // The headers of the node that is installed, not of one that would be fetched.
        npm.env("npm_config_nodedir", "/usr");
        npm
    })
}

/// What the client for node needs to be compiled and run; why it is not there.
pub fn lacks_node_client() -> Option<&'static str> {
    let needs = [("cmake", "cmake"), ("npm", "npm"), ("/usr/include/node/node_api.h", "the headers of node")];
    needs.into_iter().find(|(tool, _)| !privilege::is_installed(tool)).map(|(_, name)| name)
}

fn installed(name: &str, command: impl Fn(&Path) -> Command) -> Result<PathBuf> {
    // Tests of one process run at the same time.
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = target_dir().join("lambda").join(name);
    if !directory.exists() {
        let new = directory.with_file_name(unique("new"));
        fs::create_dir_all(&new)?;
        let made = run_within(INSTALL_LIMIT, &mut command(&new));
        if let Err(error) = made {
            let _ = fs::remove_dir_all(&new);
            return Err(error);
        }
        fs::rename(&new, &directory)?;
    }
    Ok(directory)
}

/// A handler: its code in a directory, and a root file system that shows the programs of this host. Removed on drop.
#[derive(Debug)]
pub struct LambdaFunction {
    root: PathBuf,
    /// Where it listens, on every address.
    pub port: u16,
    section: String,
}

impl LambdaFunction {
    /// The name of the function.
    pub const NAME: &str = "handler";

    /// A handler in Python: `app.py` with this text. `keys` are further keys of its section.
    pub fn python(code: &str, keys: &str) -> Result<Self> {
        let client = python_client()?;
        let command = ["/usr/bin/python3", "-m", "awslambdaric", "app.handler"];
        Self::new("app.py", code, &client, &command, &format!("env = {{ PYTHONPATH = {CLIENT:?} }}\n{keys}"))
    }

    /// A handler in JavaScript: `app.js` with this text.
    pub fn node(code: &str, keys: &str) -> Result<Self> {
        let client = node_client()?;
        let program = format!("{CLIENT}/node_modules/aws-lambda-ric/index.mjs");
        Self::new("app.js", code, &client, &["/usr/bin/node", &program, "app.handler"], keys)
    }

    /// Any program of this host: its file is the handler's code.
    pub fn program(program: &Path, keys: &str) -> Result<Self> {
        let code = fs::read(program)?;
        Self::new("program", code, Path::new("/usr/share/empty"), &["/var/task/program"], keys)
    }

    /// A script that speaks to the Runtime API itself.
    pub fn script(code: &str, keys: &str) -> Result<Self> {
        Self::new(
            "script.py",
            code,
            Path::new("/usr/share/empty"),
            &["/usr/bin/python3", "/var/task/script.py"],
            keys,
        )
    }

    fn new(name: &str, code: impl AsRef<[u8]>, client: &Path, command: &[&str], keys: &str) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let root = Path::new("/var/lib").join(unique("lambda"));
        let mut function = Self { root, port: free_port()?.port(), section: String::new() };
        let root = function.root.clone();
        for directory in
            ["usr", "opt/client", "var/task", "proc", "dev", "sys", "tmp", "run/headstart", "etc"]
        {
            fs::create_dir_all(root.join("root").join(directory))?;
        }
        for link in ["bin", "lib", "lib64"] {
            symlink(Path::new("usr").join(link), root.join("root").join(link))?;
        }
        fs::create_dir_all(root.join("code"))?;
        let file = root.join("code").join(name);
        fs::write(&file, code)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        fs::create_dir_all("/usr/share/empty")?;
        let mount = |source: &Path, target: &str| format!("{{ source = {source:?}, target = {target:?} }}");
        let mounts =
            [mount(Path::new("/usr"), "/usr"), mount(client, CLIENT), mount(&root.join("code"), CODE)];
        function.section = format!(
            "[[function]]\nname = {:?}\nlisten = \"0.0.0.0:{}\"\nruntime = \"oci\"\nrootfs = {:?}\n\
             contract = \"lambda\"\nhandler = \"app.handler\"\nworkdir = {CODE:?}\ncommand = {command:?}\n\
             mounts = [{}]\n{keys}\n",
            Self::NAME,
            function.port,
            root.join("root"),
            mounts.join(", "),
        );
        Ok(function)
    }

    /// Its section of the configuration.
    pub fn section(&self) -> &str {
        &self.section
    }

    /// Sends a request, and returns the answer.
    pub fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<Reply> {
        ask(self.port, method, path, headers, body)
    }
}

impl Drop for LambdaFunction {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// Without the chunks in which it came.
    pub body: Vec<u8>,
    /// It has come to its end.
    pub complete: bool,
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Sends a request to this port on loopback, and returns the answer.
pub fn ask(port: u16, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<Reply> {
    const LIMIT: Duration = Duration::from_secs(30);
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(LIMIT))?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    client.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    // An answer that is broken off may end with a reset.
    let read = client.read_to_end(&mut answer);
    ensure!(read.is_ok() || !answer.is_empty(), "no answer: {read:?}");
    parse(&answer)
        .with_context(|| format!("the answer to {method} {path}: {}", String::from_utf8_lossy(&answer)))
}

fn parse(answer: &[u8]) -> Result<Reply> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no end of the head")?;
    let (head, body) = (String::from_utf8_lossy(&answer[..end]).into_owned(), &answer[end + 4..]);
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status")?;
    let low = head.to_lowercase();
    if low.contains("transfer-encoding: chunked") {
        let (body, complete) = unchunk(body).context("no chunks")?;
        return Ok(Reply { status, head, body, complete });
    }
    let length =
        low.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let complete = length.is_none_or(|length: usize| length == body.len());
    Ok(Reply { status, head, body: body.to_vec(), complete })
}

/// The body, and whether its last chunk has come.
fn unchunk(mut chunks: &[u8]) -> Option<(Vec<u8>, bool)> {
    let mut body = Vec::new();
    while let Some(end) = chunks.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&chunks[..end]).ok()?, 16).ok()?;
        if length == 0 {
            return Some((body, true));
        }
        let rest = &chunks[end + 2..];
        body.extend_from_slice(rest.get(..length.min(rest.len()))?);
        chunks = rest.get(length + 2..).unwrap_or_default();
    }
    Some((body, false))
}
