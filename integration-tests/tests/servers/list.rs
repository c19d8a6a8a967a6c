//! The servers, as docs/servers.md lists them.

/// A server.
pub(crate) struct Server {
    /// The name in the table.
    pub(crate) name: &'static str,
    /// What must be there for it to run.
    pub(crate) needs: &'static [&'static str],
    /// Files in its directory. In them, `DIR` is the directory, and the port is written 8080.
    pub(crate) files: &'static [(&'static str, &'static str)],
    /// What else it needs there.
    pub(crate) brings: Brings,
    /// Program and arguments; `DIR` is its directory, and `PORT` its port.
    pub(crate) command: &'static [&'static str],
    /// Further keys of the function.
    pub(crate) keys: &'static str,
    /// Whether it asks PostgreSQL for its answer.
    pub(crate) database: bool,
}

/// What no package of Debian brings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Brings {
    Nothing,
    /// The packages of [`NPM`], which are newer than Debian's.
    NodeModules,
    /// Its program `main`, compiled.
    GoProgram,
    /// Its classes, compiled.
    JavaClasses,
}

pub(crate) const NPM: [&str; 3] = ["express@5.3.0", "fastify@5.12.8", "pg@8.23.1"];

const NODE: &str = "/usr/bin/node";
const PYTHON: &str = "/usr/bin/python3";
const PHP_FPM: &str = "/usr/sbin/php-fpm8.2";
const PHP_PGSQL: &str = "/usr/lib/php/20220829/pgsql.so";

macro_rules! jars {
    () => {
        "/usr/share/java/jetty9-server.jar:/usr/share/java/jetty9-http.jar:/usr/share/java/jetty9-io.jar:\
         /usr/share/java/jetty9-util.jar:/usr/share/java/servlet-api.jar:/usr/share/java/postgresql.jar"
    };
}
/// Of Jetty, and of JDBC.
pub(crate) const JARS: &str = jars!();

macro_rules! app {
    ($($name:literal),+) => { &[$(($name, include_str!(concat!("apps/", $name)))),+] };
}

pub(crate) const SERVERS: [Server; 18] = [
    Server {
        name: "node http",
        needs: &[NODE],
        files: app!("http.js"),
        brings: Brings::Nothing,
        command: &[NODE, "DIR/http.js"],
        keys: "memory = \"512MiB\"",
        database: false,
    },
    Server {
        name: "node cluster",
        needs: &[NODE],
        files: app!("cluster.js"),
        brings: Brings::Nothing,
        command: &[NODE, "DIR/cluster.js"],
        keys: "memory = \"512MiB\"",
        database: false,
    },
    Server {
        name: "express",
        needs: &[NODE, "/usr/bin/npm"],
        files: app!("express.js"),
        brings: Brings::NodeModules,
        command: &[NODE, "DIR/express.js"],
        keys: "memory = \"512MiB\"",
        database: true,
    },
    Server {
        name: "fastify",
        needs: &[NODE, "/usr/bin/npm"],
        files: app!("fastify.js"),
        brings: Brings::NodeModules,
        command: &[NODE, "DIR/fastify.js"],
        keys: "memory = \"512MiB\"",
        database: true,
    },
    Server {
        name: "Python http.server",
        needs: &[PYTHON],
        files: app!("index.html"),
        brings: Brings::Nothing,
        command: &[PYTHON, "-m", "http.server", "PORT", "--directory", "DIR"],
        keys: "",
        database: false,
    },
    Server {
        name: "gunicorn",
        needs: &["/usr/bin/gunicorn", "/usr/lib/python3/dist-packages/psycopg2"],
        files: app!("database.py"),
        brings: Brings::Nothing,
        command: &["/usr/bin/gunicorn", "--chdir", "DIR", "--workers", "2", "database:app"],
        keys: "memory = \"256MiB\"",
        database: true,
    },
    Server {
        name: "uvicorn",
        needs: &["/usr/bin/uvicorn"],
        files: app!("asgi.py"),
        brings: Brings::Nothing,
        command: &["/usr/bin/uvicorn", "--app-dir", "DIR", "--port", "PORT", "asgi:app"],
        keys: "memory = \"256MiB\"",
        database: false,
    },
    Server {
        name: "waitress",
        needs: &["/usr/lib/python3/dist-packages/waitress"],
        files: app!("wsgi.py"),
        brings: Brings::Nothing,
        command: &[PYTHON, "-m", "waitress", "--port=PORT", "wsgi:app"],
        keys: "env = { PYTHONPATH = \"DIR\" }",
        database: false,
    },
    Server {
        name: "Django's runserver",
        needs: &["/usr/lib/python3/dist-packages/django", "/usr/lib/python3/dist-packages/psycopg2"],
        files: app!("manage.py"),
        brings: Brings::Nothing,
        command: &[PYTHON, "DIR/manage.py", "runserver", "--noreload", "PORT"],
        keys: "memory = \"256MiB\"",
        database: true,
    },
    Server {
        name: "nginx, 2 workers",
        needs: &["/usr/sbin/nginx"],
        files: app!("nginx.conf"),
        brings: Brings::Nothing,
        command: &["/usr/sbin/nginx", "-c", "DIR/nginx.conf", "-e", "stderr"],
        keys: "",
        database: false,
    },
    Server {
        name: "PHP's own server",
        needs: &["/usr/bin/php", PHP_PGSQL],
        files: app!("index.php"),
        brings: Brings::Nothing,
        command: &["/usr/bin/php", "-S", "0.0.0.0:PORT", "-t", "DIR"],
        keys: "",
        database: true,
    },
    Server {
        name: "php-fpm behind nginx",
        needs: &["/usr/sbin/nginx", PHP_FPM, PHP_PGSQL],
        files: app!("index.php", "fpm.conf", "fpm-nginx.conf", "start.sh"),
        brings: Brings::Nothing,
        command: &["/bin/sh", "DIR/start.sh"],
        keys: "",
        database: true,
    },
    Server {
        name: "Ruby's webrick",
        needs: &["/usr/share/rubygems-integration/all/gems/webrick-1.8.1"],
        files: app!("index.html"),
        brings: Brings::Nothing,
        command: &[
            "/usr/bin/ruby",
            "-rwebrick",
            "-e",
            "s = WEBrick::HTTPServer.new(Port: PORT, DocumentRoot: 'DIR'); trap('TERM') { s.shutdown }; s.start",
        ],
        keys: "",
        database: false,
    },
    Server {
        name: "puma",
        needs: &["/usr/bin/puma", "/usr/lib/ruby/vendor_ruby/pg.rb"],
        files: app!("config.ru"),
        brings: Brings::Nothing,
        command: &["/usr/bin/puma", "-b", "tcp://0.0.0.0:PORT", "DIR/config.ru"],
        keys: "memory = \"256MiB\"",
        database: true,
    },
    Server {
        name: "Perl, blocking in accept",
        needs: &["/usr/bin/perl", "/usr/lib/x86_64-linux-gnu/perl5/5.36/DBD/Pg.pm"],
        files: app!("server.pl"),
        brings: Brings::Nothing,
        command: &["/usr/bin/perl", "DIR/server.pl"],
        keys: "",
        database: true,
    },
    Server {
        name: "the JDK's HttpServer",
        needs: &["/usr/bin/javac"],
        files: app!("Main.java"),
        brings: Brings::JavaClasses,
        command: &["/usr/bin/java", "-cp", "DIR", "Main"],
        keys: "memory = \"1GiB\"\npids = 256",
        database: false,
    },
    Server {
        name: "Jetty",
        needs: &["/usr/bin/javac", "/usr/share/java/jetty9-server.jar", "/usr/share/java/postgresql.jar"],
        files: app!("WithJetty.java"),
        brings: Brings::JavaClasses,
        command: &["/usr/bin/java", "-cp", concat!("DIR:", jars!()), "WithJetty"],
        keys: "memory = \"1GiB\"\npids = 256\nbackend_ports = { orders-db = 5432 }",
        database: true,
    },
    Server {
        name: "Go net/http",
        needs: &["/usr/bin/go", "/usr/share/gocode/src/github.com/lib/pq"],
        files: app!("main.go"),
        brings: Brings::GoProgram,
        command: &["DIR/main"],
        keys: "",
        database: true,
    },
];
