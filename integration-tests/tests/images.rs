//! Functions from container images, without Docker.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use headstart_integration_tests::lab::cli::headstart;
use headstart_integration_tests::lab::site::LIMIT;
use headstart_integration_tests::lab::{
    AgentSetup, ChildProcess, DockerDaemon, DockerImage, RegistryServer, Rootfs, RunningAgent, Scratch,
    binary, build_static, client, free_port, privilege,
};

const NAME: &str = "unchanged";

fn ready() -> bool {
    privilege::require_root("containers") && privilege::require_tools(&["runc", "dockerd", "docker-registry"])
}

/// A server that knows nothing of Headstart, as an image of Docker.
fn image(docker: &Arc<DockerDaemon>, tag: &str, mode: &str) -> DockerImage {
    let rootfs = Rootfs::with_binary(NAME, &build_static("headstart-lab-functions", NAME).unwrap()).unwrap();
    let mode = format!("ENV MODE={mode}");
    rootfs.docker_image_with(docker, tag, &["EXPOSE 8080", "USER 1234:1235", "WORKDIR /etc", &mode]).unwrap()
}

/// `headstart image` with these words: its exit code and what it said.
fn images(store: &Scratch, words: &[&str]) -> (Option<i32>, String) {
    let place = store.path().display().to_string();
    let all = [&["image", "--image-dir", &place], words].concat();
    let outcome = headstart(&all).unwrap();
    (outcome.code, outcome.all)
}

#[track_caller]
fn pull(store: &Scratch, name: &str) -> String {
    let (code, said) = images(store, &["pull", name]);
    assert_eq!(code, Some(0), "{said}");
    said
}

struct Server {
    store: Scratch,
    port: u16,
    /// The function's, which no other test has.
    name: String,
}

impl Server {
    fn new() -> Self {
        let port = free_port().unwrap().port();
        Self { store: Scratch::new("images").unwrap(), port, name: format!("image-{port}") }
    }

    fn section(&self, image: &str) -> String {
        format!(
            "[[function]]\nname = {:?}\nlisten = \"127.0.0.1:{}\"\nruntime = \"oci\"\nimage = {image:?}\n\
             contract = \"port\"\nstop_grace = \"500ms\"\n",
            self.name, self.port
        )
    }

    fn agent(&self, image: &str) -> RunningAgent {
        let init = build_static("headstart-init", "headstart-init").unwrap();
        let setup = AgentSetup::default().setting("init", &format!("{init:?}"));
        let setup = setup.setting("image_dir", &format!("{:?}", self.store.path()));
        setup.config(&self.section(image)).start_unready().unwrap()
    }

    fn get(&self) -> client::HttpReply {
        let reply = client::get(([127, 0, 0, 1], self.port).into(), "/", LIMIT).unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        reply
    }
}

/// The user and the directory of the function's program.
fn of_program(server: &Server) -> (String, PathBuf) {
    let own = std::fs::read_dir("/proc").unwrap().flatten().filter(|process| {
        let cgroup = std::fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        let exe = std::fs::read_link(process.path().join("exe")).unwrap_or_default();
        cgroup.contains(&server.name) && exe.ends_with(NAME)
    });
    let process = own.map(|process| process.path()).next().unwrap();
    let status = std::fs::read_to_string(process.join("status")).unwrap();
    let ids = |key: &str| {
        status.lines().find_map(|line| line.strip_prefix(key)).unwrap().split('\t').nth(1).unwrap().to_owned()
    };
    (format!("{}:{}", ids("Uid:"), ids("Gid:")), std::fs::read_link(process.join("cwd")).unwrap())
}

#[test]
fn an_image_of_a_registry_is_served_and_a_tag_that_moves_replaces_it() {
    if !ready() {
        return;
    }
    let (docker, registry, server) =
        (DockerDaemon::shared().unwrap(), RegistryServer::on_loopback(false).unwrap(), Server::new());
    let name = format!("{}/{NAME}:1", registry.host());
    let agent = server.agent(&name);
    let check = headstart(&["check", "--config", &agent.config().display().to_string()]).unwrap();
    let to_do = format!("headstart image pull --image-dir {} {name}`", server.store.path().display());
    assert!(check.code == Some(2) && check.all.contains(&to_do), "{}", check.all);
    let unavailable = agent.functions().unwrap().to_string() + &agent.log();
    assert!(unavailable.contains(&to_do), "{unavailable}");
    let (code, said) = images(&server.store, &["pull", &name]);
    assert!(code == Some(1) && said.contains("has no image"), "{said}");

    let first = image(&docker, &name, "events");
    docker.run(&["push", &name]).unwrap();
    assert!(pull(&server.store, &name).contains("headstart reload"));
    let reload = |expected: &str| {
        let said = headstart(&["reload", "--admin", &agent.admin().to_string()]).unwrap();
        assert!(said.code == Some(0) && said.all.contains(expected), "{}", said.all);
    };
    reload("added");
    server.get();
    assert_eq!(of_program(&server), ("1234:1235".to_owned(), "/etc".into()));
    assert!(pull(&server.store, &name).contains("as before"));
    // An instance has it, whatever its name stands for.
    let before = images(&server.store, &["list"]).1;
    let (_, said) = images(&server.store, &["remove", &name]);
    assert!(said.contains("0 images removed") && said.contains("stays"), "{said}");
    server.get();

    drop(first);
    let _second = image(&docker, &name, "blocks");
    docker.run(&["push", &name]).unwrap();
    pull(&server.store, &name);
    assert_ne!(images(&server.store, &["list"]).1, before);
    reload("replaced");
    server.get();
    agent
        .wait_function(&server.name, "alone", LIMIT, |function| {
            function["instances"] == 1 && function["removing"] == 0
        })
        .unwrap();
    let (_, said) = images(&server.store, &["gc"]);
    assert!(said.contains("1 images removed") && !said.contains("stays"), "{said}");
    server.get();
    drop(registry);
    let (code, said) = images(&server.store, &["pull", &name]);
    assert!(code == Some(1) && said.contains("cannot be asked") && said.contains("try again"), "{said}");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn an_image_that_was_saved_is_served() {
    if !ready() {
        return;
    }
    let (docker, server) = (DockerDaemon::shared().unwrap(), Server::new());
    let image = image(&docker, "headstart-test/saved:1", "events");
    let file = server.store.path().join("saved.tar").display().to_string();
    docker.run(&["save", "--output", &file, image.tag()]).unwrap();
    let name = format!("docker-archive:{file}");
    pull(&server.store, &name);
    let agent = server.agent(&name);
    server.get();
    assert_eq!(of_program(&server).0, "1234:1235");
    assert!(agent.stop().unwrap().success());
}

/// What stock images of nginx do before: all of it in directories of root's.
const ENTRYPOINT: &str = "#!/bin/sh\nset -e\necho 'add_header X-Entrypoint ran;' >>/etc/nginx/conf.d/headers.conf\n: >/srv/uploads/x\n: >/var/spool/web/x\nexec \"$@\"\n";

const NGINX: &str = "user nginx;\nworker_processes 2;\nerror_log /var/log/nginx/error.log notice;\npid /var/run/nginx.pid;\n\
                     events {}\nhttp {\n  access_log /var/log/nginx/access.log;\n  client_body_in_file_only clean;\n  \
                     include /etc/nginx/conf.d/*.conf;\n  \
                     server { listen 80; location / { root /usr/share/nginx/html; } }\n}\n";

/// Debian's nginx, with configuration, entry point and directories as in nginx's own image: all are root's.
fn nginx(docker: &Arc<DockerDaemon>, tag: &str) -> DockerImage {
    let unused = build_static("headstart-lab-functions", NAME).unwrap();
    let rootfs = Rootfs::with_binary(NAME, &unused).unwrap();
    rootfs.add_program("/usr/sbin/nginx".as_ref()).unwrap();
    rootfs.add_program("/bin/sh".as_ref()).unwrap();
    let root = rootfs.path();
    let spool = root.join("var/spool/web");
    std::fs::create_dir_all(&spool).unwrap();
    chown(spool, Some(101), Some(101)).unwrap();
    for place in
        ["etc/nginx/conf.d", "usr/share/nginx/html", "var/log/nginx", "var/cache/nginx", "var/lib/nginx"]
    {
        std::fs::create_dir_all(root.join(place)).unwrap();
    }
    let passwd = std::fs::read_to_string(root.join("etc/passwd")).unwrap();
    for (path, text) in [
        ("etc/passwd", format!("{passwd}nginx:x:101:101::/nonexistent:/bin/false\n")),
        ("etc/nginx/nginx.conf", NGINX.to_owned()),
        ("etc/nginx/conf.d/headers.conf", "server_tokens off;\n".to_owned()),
        ("usr/share/nginx/html/index.html", "Welcome to nginx!\n".to_owned()),
        ("docker-entrypoint.sh", ENTRYPOINT.to_owned()),
    ] {
        std::fs::write(root.join(path), text).unwrap();
    }
    std::fs::set_permissions(root.join("docker-entrypoint.sh"), Permissions::from_mode(0o755)).unwrap();
    symlink("/dev/stdout", root.join("var/log/nginx/access.log")).unwrap();
    symlink("/dev/stderr", root.join("var/log/nginx/error.log")).unwrap();
    symlink("/run", root.join("var/run")).unwrap();
    let instructions = [
        "ENTRYPOINT [\"/docker-entrypoint.sh\"]",
        "CMD [\"nginx\", \"-g\", \"daemon off;\"]",
        "EXPOSE 80",
        "VOLUME /srv/uploads /var/spool/web",
    ];
    let image = rootfs.docker_image_with(docker, tag, &instructions).unwrap();
    // What an import cannot say.
    let place = Scratch::new("dockerfile").unwrap();
    std::fs::write(place.path().join("Dockerfile"), format!("FROM {tag}\nSTOPSIGNAL SIGQUIT\n")).unwrap();
    docker.run(&["build", "--tag", tag, &place.path().display().to_string()]).unwrap();
    image
}

#[test]
fn a_stock_nginx_is_served_unchanged() {
    if !ready() || !privilege::require_tools(&["nginx"]) {
        return;
    }
    let (docker, server) = (DockerDaemon::shared().unwrap(), Server::new());
    let image = nginx(&docker, &format!("headstart-test/nginx:{}", server.port));
    let file = server.store.path().join("nginx.tar").display().to_string();
    docker.run(&["save", "--output", &file, image.tag()]).unwrap();
    let name = format!("docker-archive:{file}");
    pull(&server.store, &name);
    let agent = server.agent(&name);
    let page = server.get();
    assert_eq!(page.body, "Welcome to nginx!\n");
    assert_eq!(page.header("X-Entrypoint"), Some("ran"), "its entry point has changed its configuration");
    agent.stop_function(&server.name).unwrap();
    agent.wait_log("gracefully shutting down", LIMIT).unwrap();
    assert!(agent.stop().unwrap().success());
}

#[test]
fn a_registry_that_wants_a_login_gets_the_one_that_is_kept() {
    if !ready() {
        return;
    }
    let (registry, files, store) = (
        RegistryServer::on_loopback(true).unwrap(),
        Scratch::new("login").unwrap(),
        Scratch::new("images").unwrap(),
    );
    let name = format!("{}/app:1", registry.host());
    let (code, said) = images(&store, &["pull", &name]);
    assert!(code == Some(1) && said.contains("to those who log in"), "{said}");
    let mut command = Command::new(binary().unwrap());
    command.env("DOCKER_CONFIG", registry.login(&files).unwrap());
    command.args(["image", "pull", &name, "--image-dir"]).arg(store.path());
    let mut pull = ChildProcess::spawn(&mut command).unwrap();
    pull.wait(LIMIT).unwrap();
    // It is let in, and there is nothing.
    let said = pull.log();
    assert!(said.contains("has no image") && !said.contains(RegistryServer::PASSWORD), "{said}");
}
