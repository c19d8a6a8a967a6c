//! Root filesystems for functions: one static binary and the few directories it may expect.

use super::{
    command::run_within,
    docker::DockerDaemon,
    profile,
    scratch::{Scratch, unique},
    target_dir, workspace,
};
use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The first build compiles the examples' dependencies, perhaps on two processors.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);

/// A root filesystem in a directory. Removed on drop.
#[derive(Debug)]
pub struct Rootfs {
    files: Scratch,
    name: String,
}

impl Rootfs {
    /// Builds the example function `name` statically, and lays out a root filesystem around it.
    pub fn example(name: &str) -> Result<Self> {
        Self::with_binary(name, &build_static(name, name)?)
    }

    /// Lays out a root filesystem with `binary`, which must be static, as `/name`.
    pub fn with_binary(name: &str, binary: &Path) -> Result<Self> {
        let image = fs::read(binary).with_context(|| format!("reading {}", binary.display()))?;
        ensure!(is_static(&image), "{} is not a static x86-64 binary", binary.display());
        let rootfs = Self { files: Scratch::new("rootfs")?, name: name.to_owned() };
        let path = rootfs.path();
        for directory in ["proc", "dev", "sys", "tmp", "run/headstart", "etc"] {
            fs::create_dir_all(path.join(directory))?;
        }
        fs::write(
            path.join("etc/passwd"),
            "root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n",
        )?;
        fs::write(path.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
        fs::copy(binary, path.join(name))?;
        Ok(rootfs)
    }

    /// Adds a program of this host, with the libraries that it needs, in the places that they have here.
    pub fn add_program(&self, program: &Path) -> Result<()> {
        let listed = run_within(BUILD_LIMIT, Command::new("ldd").arg(program))?;
        let libraries = listed.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
        for file in libraries.chain([program]) {
            let target = self.path().join(file.strip_prefix("/")?);
            fs::create_dir_all(target.parent().context("a file is in a directory")?)?;
            fs::copy(file, target).with_context(|| format!("copying {}", file.display()))?;
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.files.path()
    }

    /// The binary as seen from inside: the first word of the function's `command`.
    pub fn command(&self) -> String {
        format!("/{}", self.name)
    }

    /// Imports it into Docker under a tag of its own.
    pub fn docker_image(&self, docker: &Arc<DockerDaemon>) -> Result<DockerImage> {
        self.docker_image_with(docker, &format!("headstart-test/{}:{}", self.name, unique("image")), &[])
    }

    /// The same under this tag, with further instructions as in a Dockerfile. Without CMD among them it runs the binary.
    pub fn docker_image_with(
        &self,
        docker: &Arc<DockerDaemon>,
        tag: &str,
        instructions: &[&str],
    ) -> Result<DockerImage> {
        let archive = Scratch::new("image")?;
        let tar = archive.path().join("rootfs.tar");
        run_within(
            BUILD_LIMIT,
            Command::new("tar").arg("-C").arg(self.path()).arg("-cf").arg(&tar).arg("."),
        )?;
        let start = format!("CMD [\"{}\"]", self.command());
        let mut import = docker.command();
        import.arg("import");
        let start = Some(&*start).filter(|_| !instructions.iter().any(|one| one.starts_with("CMD")));
        for instruction in instructions.iter().copied().chain(start) {
            import.args(["-c", instruction]);
        }
        run_within(BUILD_LIMIT, import.arg(&tar).arg(tag))?;
        Ok(DockerImage { tag: tag.to_owned(), docker: Arc::clone(docker) })
    }
}

/// An image in Docker. Removed on drop, with the containers made from it.
#[derive(Debug)]
pub struct DockerImage {
    tag: String,
    docker: Arc<DockerDaemon>,
}

impl DockerImage {
    /// The value of `image` in the function's configuration.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl Drop for DockerImage {
    fn drop(&mut self) {
        let filter = format!("ancestor={}", self.tag);
        let removed = self
            .docker
            .remove_containers(&filter)
            .and_then(|()| self.docker.run(&["image", "rm", "--force", &self.tag]));
        if let Err(error) = removed {
            eprintln!("{error:#}");
        }
    }
}

/// Builds the program `binary` of a package of this workspace statically, at most once per process, and returns its path.
/// If `HEADSTART_STATIC_DIR` is set, the program is there already.
pub fn build_static(package: &str, binary: &str) -> Result<PathBuf> {
    if let Some(directory) = env::var_os("HEADSTART_STATIC_DIR") {
        let program = Path::new(&directory).join(binary);
        ensure!(program.is_file(), "HEADSTART_STATIC_DIR has no {binary}: {}", program.display());
        return Ok(program);
    }
    // The tests of one process would only wait for each other's cargo, and each call of it takes a quarter of a second even
    // when there is nothing to build.
    static BUILT: Mutex<BTreeSet<(String, String)>> = Mutex::new(BTreeSet::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let program = target_dir().join(TARGET).join(profile()).join(binary);
    if !built.insert((package.to_owned(), binary.to_owned())) {
        return Ok(program);
    }
    let mut cargo = cargo();
    cargo.args(["build", "--profile", profile(), "--target", TARGET, "-p", package, "--bin", binary]);
    let build = run_within(BUILD_LIMIT, cargo.env("RUSTFLAGS", "-C target-feature=+crt-static"));
    if build.is_err() {
        built.remove(&(package.to_owned(), binary.to_owned()));
    }
    build.map(|_| program)
}

/// The cargo that runs the tests, in the workspace.
pub(super) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).arg("--quiet");
    cargo
}

/// Whether `image` is a 64-bit ELF file for this machine that asks for no dynamic loader
/// (no program header PT_INTERP; see elf(5) for the offsets).
fn is_static(image: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let number = |offset: usize, length: usize| -> Option<u64> {
        let bytes = image.get(offset..offset.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let asks_for_loader = || -> Option<bool> {
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        for index in 0..count {
            let header = usize::try_from(table.checked_add(index * size)?).ok()?;
            if number(header, 4)? == PT_INTERP {
                return Some(true);
            }
        }
        Some(false)
    };
    image.starts_with(b"\x7fELF\x02\x01") && asks_for_loader() == Some(false)
}
