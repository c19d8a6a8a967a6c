//! Servers of others, unchanged, each as a function of `contract = "port"`. A row whose program is not installed is skipped.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use headstart_integration_tests::lab::site::LIMIT;
use headstart_integration_tests::lab::{
    AgentSetup, RunningAgent, build_static, free_port, privilege, unique, workspace,
};
use serde_json::Value;

const NAME: &str = "server";

/// What a server has to stop by itself, the default of `stop_grace`.
const GRACE: Duration = Duration::from_secs(10);

/// A server, as docs/servers.md lists it.
struct Server {
    /// The name in the table.
    name: &'static str,
    /// What must be there for it to run.
    needs: &'static str,
    /// Files in its directory.
    files: &'static [(&'static str, &'static str)],
    /// Program and arguments; `DIR` is its directory, and `PORT` its port. In files, the port is written 8080.
    command: &'static [&'static str],
    /// Further keys of the function.
    keys: &'static str,
}

const WSGI: &str = "def app(environ, start_response):\n\
    \x20   start_response('200 OK', [('content-type', 'text/plain')])\n\
    \x20   return [b'hello']\n";

const ASGI: &str = "async def app(scope, receive, send):\n\
    \x20   await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n\
    \x20   await send({'type': 'http.response.body', 'body': b'hello'})\n";

const DJANGO: &str = "import sys\n\
    from django.conf import settings\n\
    from django.core.management import execute_from_command_line\n\
    from django.http import HttpResponse\n\
    from django.urls import path\n\
    settings.configure(DEBUG=True, ROOT_URLCONF=__name__, ALLOWED_HOSTS=['*'], SECRET_KEY='x')\n\
    urlpatterns = [path('', lambda request: HttpResponse('hello'))]\n\
    execute_from_command_line(sys.argv)\n";

const PERL: &str = "use IO::Socket::INET;\n\
    my $listener = IO::Socket::INET->new(LocalPort => $ENV{PORT}, Listen => 5, ReuseAddr => 1) or die $!;\n\
    while (my $client = $listener->accept) {\n\
    \x20   while (my $line = <$client>) { last if $line =~ /^\\r?\\n$/ }\n\
    \x20   print $client \"HTTP/1.1 200 OK\\r\\ncontent-length: 5\\r\\nconnection: close\\r\\n\\r\\nhello\";\n\
    \x20   close $client;\n\
    }\n\
    die \"accept: $!\";\n";

const JAVA: &str = "import com.sun.net.httpserver.HttpServer;\n\
    public class Main {\n\
    \x20 public static void main(String[] a) throws Exception {\n\
    \x20   HttpServer server = HttpServer.create(new java.net.InetSocketAddress(8080), 0);\n\
    \x20   server.createContext(\"/\", exchange -> {\n\
    \x20     exchange.sendResponseHeaders(200, 5);\n\
    \x20     exchange.getResponseBody().write(\"hello\".getBytes());\n\
    \x20     exchange.close();\n\
    \x20   });\n\
    \x20   server.start();\n\
    \x20 }\n\
    }\n";

const GO: &str = "package main\n\
    import (\"fmt\"; \"net/http\")\n\
    func main() {\n\
    \thttp.HandleFunc(\"/\", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, \"hello\") })\n\
    \tpanic(http.ListenAndServe(\":8080\", nil))\n\
    }\n";

const NGINX: &str = "daemon off;\npid /tmp/nginx.pid;\nerror_log stderr;\nworker_processes 2;\nevents {}\n\
    http {\n access_log off;\n client_body_temp_path /tmp/a;\n proxy_temp_path /tmp/b;\n fastcgi_temp_path /tmp/c;\n\
    \x20uwsgi_temp_path /tmp/d;\n scgi_temp_path /tmp/e;\n\
    \x20server { listen 8080; location / { return 200 hello; } }\n}\n";

const PUMA: &str = "run ->(env) { [200, { 'content-type' => 'text/plain' }, ['hello']] }\n";

const SERVERS: [Server; 14] = [
    Server {
        name: "node http",
        needs: "/usr/bin/node",
        files: &[(
            "server.js",
            "require('http').createServer((q, r) => r.end('hello')).listen(process.env.PORT)",
        )],
        command: &["/usr/bin/node", "DIR/server.js"],
        keys: "memory = \"512MiB\"",
    },
    Server {
        name: "node cluster",
        needs: "/usr/bin/node",
        files: &[(
            "server.js",
            "const c = require('cluster');\n\
             if (c.isPrimary) { c.fork(); c.fork(); }\n\
             else require('http').createServer((q, r) => r.end('hello')).listen(process.env.PORT)",
        )],
        command: &["/usr/bin/node", "DIR/server.js"],
        keys: "memory = \"512MiB\"",
    },
    Server {
        name: "Python http.server",
        needs: "/usr/bin/python3",
        files: &[("index.html", "hello")],
        command: &["/usr/bin/python3", "-m", "http.server", "PORT", "--directory", "DIR"],
        keys: "",
    },
    Server {
        name: "gunicorn",
        needs: "/usr/bin/gunicorn",
        files: &[("app.py", WSGI)],
        command: &["/usr/bin/gunicorn", "--chdir", "DIR", "--workers", "2", "app:app"],
        keys: "memory = \"256MiB\"",
    },
    Server {
        name: "uvicorn",
        needs: "/usr/bin/uvicorn",
        files: &[("app.py", ASGI)],
        command: &["/usr/bin/uvicorn", "--app-dir", "DIR", "--port", "PORT", "app:app"],
        keys: "memory = \"256MiB\"",
    },
    Server {
        name: "waitress",
        needs: "/usr/lib/python3/dist-packages/waitress",
        files: &[("app.py", WSGI)],
        command: &["/usr/bin/python3", "-m", "waitress", "--port=PORT", "app:app"],
        keys: "env = { PYTHONPATH = \"DIR\" }",
    },
    Server {
        name: "Django's runserver",
        needs: "/usr/lib/python3/dist-packages/django",
        files: &[("manage.py", DJANGO)],
        command: &["/usr/bin/python3", "DIR/manage.py", "runserver", "--noreload", "PORT"],
        keys: "memory = \"256MiB\"",
    },
    Server {
        name: "nginx, 2 workers",
        needs: "/usr/sbin/nginx",
        files: &[("nginx.conf", NGINX)],
        command: &["/usr/sbin/nginx", "-c", "DIR/nginx.conf", "-e", "stderr"],
        keys: "",
    },
    Server {
        name: "PHP's own server",
        needs: "/usr/bin/php",
        files: &[("index.php", "<?php echo 'hello';")],
        command: &["/usr/bin/php", "-S", "0.0.0.0:PORT", "-t", "DIR"],
        keys: "",
    },
    Server {
        name: "Ruby's webrick",
        needs: "/usr/share/rubygems-integration/all/gems/webrick-1.8.1",
        files: &[("index.html", "hello")],
        command: &[
            "/usr/bin/ruby",
            "-rwebrick",
            "-e",
            "s = WEBrick::HTTPServer.new(Port: PORT, DocumentRoot: 'DIR'); trap('TERM') { s.shutdown }; s.start",
        ],
        keys: "",
    },
    Server {
        name: "puma",
        needs: "/usr/bin/puma",
        files: &[("config.ru", PUMA)],
        command: &["/usr/bin/puma", "-b", "tcp://0.0.0.0:PORT", "DIR/config.ru"],
        keys: "memory = \"256MiB\"",
    },
    Server {
        name: "Perl, blocking in accept",
        needs: "/usr/bin/perl",
        files: &[("server.pl", PERL)],
        command: &["/usr/bin/perl", "DIR/server.pl"],
        keys: "",
    },
    Server {
        name: "the JDK's HttpServer",
        needs: "/usr/bin/java",
        files: &[("Main.java", JAVA)],
        command: &["/usr/bin/java", "DIR/Main.java"],
        keys: "memory = \"1GiB\"\npids = 256",
    },
    Server {
        name: "Go net/http",
        needs: "/usr/bin/go",
        files: &[("main.go", GO)],
        command: &["/usr/bin/go", "run", "DIR/main.go"],
        keys: "memory = \"2GiB\"\npids = 256\ninit_timeout = \"2m\"\nenv = { GOCACHE = \"/tmp/cache\" }",
    },
];

/// A directory that a process without privileges can read. Removed on drop.
struct Site(PathBuf);

impl Site {
    fn new(server: &Server, port: u16) -> Self {
        let site = Self(Path::new("/var/lib").join(unique("server")));
        fs::create_dir_all(&site.0).unwrap();
        for (name, text) in server.files {
            fs::write(site.0.join(name), text.replace("8080", &port.to_string())).unwrap();
        }
        site
    }

    fn section(&self, server: &Server, port: u16) -> String {
        let here = self.0.display().to_string();
        let filled = |text: &str| text.replace("DIR", &here).replace("PORT", &port.to_string());
        let command: Vec<_> = server.command.iter().map(|word| filled(word)).collect();
        let keys = server.keys.replace("DIR", &here);
        format!(
            "[[function]]\nname = \"{NAME}\"\nlisten = \"0.0.0.0:{port}\"\nruntime = \"process\"\n\
             contract = \"port\"\ncommand = {command:?}\n{keys}\n"
        )
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn at_rest(agent: &RunningAgent) {
    let rest = |function: &Value| {
        function["state"] == "cold" && function["prepared"] == 1 && function["removing"] == 0
    };
    agent.wait_function(NAME, "at rest", LIMIT, rest).unwrap();
}

/// The whole answer to a request that asks for no chunks and no further request.
fn get(port: u16) -> io::Result<String> {
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    client.set_read_timeout(Some(LIMIT))?;
    client.write_all(b"GET / HTTP/1.0\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut reply = String::new();
    client.read_to_string(&mut reply)?;
    Ok(reply)
}

/// Cold and warm, frozen and thawed, and cold again.
fn serves(server: &Server) {
    let port = free_port().unwrap().port();
    let site = Site::new(server, port);
    let init = build_static("headstart-init", "headstart-init").unwrap();
    let agent = AgentSetup::default().setting("init", &format!("{init:?}"));
    let agent = agent.config(&site.section(server, port)).start().unwrap();
    at_rest(&agent);
    let answered = |when: &str| {
        let reply =
            get(port).unwrap_or_else(|error| panic!("{} {when}: {error}\n{}", server.name, agent.log()));
        let good = reply.starts_with("HTTP/1.") && reply.contains(" 200 ") && reply.ends_with("hello");
        assert!(good, "{} {when}: {reply}\n{}", server.name, agent.log());
    };
    answered("cold");
    answered("warm");
    let free = |function: &Value| function["running"][0]["open"] == 0;
    agent.wait_function(NAME, "free", LIMIT, free).unwrap();
    agent.operate(NAME, "freeze").unwrap();
    agent.wait_state(NAME, "frozen", LIMIT).unwrap();
    answered("thawed");
    let asked = Instant::now();
    agent.stop_function(NAME).unwrap();
    at_rest(&agent);
    assert!(asked.elapsed() < GRACE, "{} does not stop when it is asked", server.name);
    answered("cold again");
    assert!(agent.stop().unwrap().success());
}

#[test]
fn servers_of_others_serve_unchanged() {
    if !privilege::require_root("namespaces") {
        return;
    }
    for server in &SERVERS {
        if Path::new(server.needs).exists() {
            println!("{}", server.name);
            serves(server);
        } else {
            println!("{}: skipped, there is no {}", server.name, server.needs);
        }
    }
}

#[test]
fn the_table_in_the_docs_has_every_server_of_the_test() {
    let text = fs::read_to_string(workspace().join("docs/servers.md")).unwrap();
    for server in &SERVERS {
        assert!(text.contains(&format!("| {} |", server.name)), "{}", server.name);
    }
}
