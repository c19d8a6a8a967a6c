//! What a function takes from its image where it says nothing itself.

use std::num::NonZeroU16;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::runtime::NOBODY_ID;
use super::stop_signal::StopSignal;
use super::{Contract, Function, Runtime};
use crate::host::resolve_in;
use crate::image::{ImageRecord, ImageStore, unprivileged, user_in};

/// Where programs are looked for if an image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Volumes of an image that are made.
const VOLUMES_MAX: usize = 16;

impl Function {
    /// Looks its image up, and takes over command, environment, user, directory and port.
    pub(crate) fn take_from_image(&mut self, images: &ImageStore) {
        let Runtime::Oci { image: Some(image), .. } = &self.runtime else { return };
        let name = &image.name;
        let found = images.find(name).and_then(|(record, rootfs)| {
            self.clone().with(&record, &rootfs).map_err(|lack| format!("{name}: {lack}"))
        });
        match found {
            Ok(complete) => *self = complete,
            Err(lack) => {
                if let Runtime::Oci { image: Some(image), .. } = &mut self.runtime {
                    image.lack = Some(lack);
                }
            }
        }
    }

    fn with(mut self, record: &ImageRecord, root: &Path) -> Result<Self, String> {
        let Runtime::Oci { rootfs, image: Some(image), .. } = &mut self.runtime else { return Ok(self) };
        root.clone_into(rootfs);
        image.owner = user_in(root, &record.user)?;
        let volumes = record.volumes.iter().map(PathBuf::from).filter(|place| place.is_absolute());
        image.volumes = volumes.take(VOLUMES_MAX).collect();
        if !self.contract.speaks() {
            self.stop_signal = self.stop_signal.or_else(|| StopSignal::of_image(&record.stop_signal));
        }
        // Where each function has users of its own, that is better than a user that images share.
        if self.user == NOBODY_ID {
            (self.user, self.group) = unprivileged(image.owner);
        }
        if !image.has_workdir && record.workdir.starts_with('/') {
            self.workdir = PathBuf::from(&record.workdir);
        }
        if let (Contract::Port(port), false) = (&mut self.contract, image.has_port) {
            match record.ports[..] {
                [] => {}
                [only] => *port = NonZeroU16::new(only).unwrap_or(*port),
                _ => {
                    let ports: Vec<_> = record.ports.iter().map(u16::to_string).collect();
                    return Err(format!("it has the ports {}: set `port` to one of them", ports.join(", ")));
                }
            }
        }
        for variable in &record.env {
            let Some((key, value)) = variable.split_once('=') else { continue };
            // The agent's own.
            if !key.is_empty() && !key.starts_with("HEADSTART_") {
                self.env.0.entry(key.to_owned()).or_insert_with(|| value.to_owned());
            }
        }
        if self.command.is_empty() {
            let (program, arguments) =
                record.command.split_first().ok_or("it has neither Entrypoint nor Cmd: set `command`")?;
            let path = self.env.0.get("PATH").map_or(DEFAULT_PATH, String::as_str);
            let program = find(root, program, path, &self.workdir)
                .ok_or_else(|| format!("its program {program:?} is not in it: set `command`"))?;
            self.command = [program].into_iter().chain(arguments.iter().cloned()).collect();
        }
        Ok(self)
    }
}

/// The absolute path of a program, as a shell in the image finds it.
fn find(root: &Path, program: &str, path: &str, workdir: &Path) -> Option<String> {
    if program.starts_with('/') {
        return Some(program.to_owned());
    }
    let places: Vec<PathBuf> = if program.contains('/') {
        vec![workdir.join(program)]
    } else {
        path.split(':')
            .filter(|place| place.starts_with('/'))
            .map(|place| Path::new(place).join(program))
            .collect()
    };
    let executable = |file: &PathBuf| {
        let found = resolve_in(root, file).and_then(std::fs::metadata);
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    places.into_iter().find(executable)?.to_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::image::ImageName;

    const NAME: &str = "r.example/app:1";

    /// A store with one image, and a function of it with these keys.
    fn function(record: &ImageRecord, keys: &str) -> Function {
        let store = tempfile::tempdir().unwrap();
        let images = ImageStore(store.path().to_owned());
        let rootfs = images.rootfs(&record.id);
        std::fs::create_dir_all(rootfs.join("opt/bin")).unwrap();
        let program = rootfs.join("opt/bin/serve");
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir_all(images.refs()).unwrap();
        let file = images.record_file(&ImageName::parse(NAME).unwrap());
        std::fs::write(file, serde_json::to_string(record).unwrap()).unwrap();
        let text = format!(
            "[[function]]\nname = \"f\"\nlisten = \"127.0.0.1:81\"\nruntime = \"oci\"\nimage = {NAME:?}\n{keys}"
        );
        let mut config = Config::parse("t", &text).unwrap_or_else(|errors| panic!("{errors}"));
        config.functions[0].look(&images);
        config.functions.remove(0)
    }

    fn record() -> ImageRecord {
        ImageRecord {
            name: NAME.into(),
            digest: "sha256:0".into(),
            id: "ab".repeat(32),
            command: vec!["serve".into(), "-x".into()],
            env: vec!["PATH=/bin:/opt/bin".into(), "A=1".into(), "HEADSTART_X=1".into()],
            user: "7:8".into(),
            workdir: "/opt".into(),
            ports: vec![8080],
            stop_signal: "QUIT".into(),
            volumes: vec!["/data".into(), "relative".into()],
            bytes: 1,
            pulled: 1,
        }
    }

    #[test]
    fn what_the_function_does_not_say_comes_from_the_image() {
        let taken = function(&record(), "contract = \"port\"\nenv = { B = \"2\" }");
        assert_eq!(taken.runtime.lack(), None);
        assert_eq!(taken.command, ["/opt/bin/serve", "-x"]);
        assert_eq!((taken.user, taken.group, taken.workdir.to_str()), (7, 8, Some("/opt")));
        assert_eq!(taken.contract, Contract::Port(NonZeroU16::new(8080).unwrap()));
        let env: Vec<_> = taken.env.iter().collect();
        assert_eq!(env, [("A", "1"), ("B", "2"), ("PATH", "/bin:/opt/bin")]);
        let keys =
            "contract = \"port\"\nport = 82\nworkdir = \"/\"\ncommand = [\"/bin/x\"]\nenv = { A = \"3\" }";
        let own = function(&record(), keys);
        assert_eq!((own.command.len(), own.workdir.to_str()), (1, Some("/")));
        assert_eq!(own.contract, Contract::Port(NonZeroU16::new(82).unwrap()));
        assert!(own.env.iter().any(|variable| variable == ("A", "3")));
        let signal = |record: &ImageRecord, keys: &str| {
            function(record, keys).stop_signal.map(|signal| signal.as_str())
        };
        assert_eq!(signal(&record(), "contract = \"port\""), Some("SIGQUIT"));
        assert_eq!(signal(&record(), "contract = \"port\"\nstop_signal = \"SIGINT\""), Some("SIGINT"));
        assert_eq!(signal(&record(), ""), None, "a shim is told by SIGTERM");
        for (text, known) in
            [("SIGWINCH", Some("SIGWINCH")), ("3", Some("SIGQUIT")), ("SIGRTMIN+3", None), ("", None)]
        {
            let record = ImageRecord { stop_signal: text.into(), ..record() };
            assert_eq!(signal(&record, "contract = \"port\""), known, "{text}");
        }
        let Runtime::Oci { image: Some(image), .. } = &taken.runtime else { panic!("no image") };
        assert_eq!((&image.volumes[..], image.owner), (&[PathBuf::from("/data")][..], (7, 8)));
        let quiet = ImageRecord { ports: Vec::new(), ..record() };
        assert_eq!(
            function(&quiet, "contract = \"port\"").contract,
            Contract::Port(NonZeroU16::new(81).unwrap())
        );
    }

    #[test]
    fn what_an_image_lacks_is_said_with_what_to_do() {
        let lack =
            |record: &ImageRecord, keys: &str| function(record, keys).check_host().remove(0).to_string();
        let mute = ImageRecord { command: Vec::new(), ..record() };
        assert!(lack(&mute, "").ends_with("neither Entrypoint nor Cmd: set `command`"));
        let lost = ImageRecord { command: vec!["gone".into()], ..record() };
        assert!(lack(&lost, "").contains("\"gone\" is not in it"));
        let many = ImageRecord { ports: vec![80, 443], ..record() };
        assert!(lack(&many, "contract = \"port\"").contains("the ports 80, 443: set `port`"));
        let store = tempfile::tempdir().unwrap();
        let name = ImageName::parse("nginx").unwrap();
        let missing = ImageStore(store.path().to_owned()).find(&name).unwrap_err();
        assert!(missing.contains("docker.io/library/nginx:latest`"), "{missing}");
    }
}
