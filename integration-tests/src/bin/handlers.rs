//! `make bench`, its part about handlers for AWS Lambda: what `contract = "lambda"` adds to the client library's own time.
//!
//! The same handler runs as a function, asked over HTTP, and beside a plain server of the Runtime API, which hands it the same
//! event without HTTP, container or agent. Both take turns in a random order.
//!
//! - cold: from the client's connect, or from the start of the process, to the answer;
//! - warm: the same from the client's connect, or from the event, with a handler that waits for it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use headstart_integration_tests::evidence::bench::{self, Run};
use headstart_integration_tests::lab::lambda::{LambdaFunction, python_client};
use headstart_integration_tests::lab::site::{LIMIT, unbounded};
use headstart_integration_tests::lab::{RunningAgent, Scratch, build_static};

const CODE: &str = "def handler(event, context):\n    return 'Hello World!'\n";
const COLD: &str = "handler_cold_ms";
const WARM: &str = "handler_warm_ms";

/// Turns of each, after one that warms caches, and warm requests of a turn.
const TURNS: usize = 60;
const QUICK_TURNS: usize = 10;
const REQUESTS: usize = 10;

fn main() -> ExitCode {
    bench::main("handlers", measure)
}

fn measure(run: &mut Run) -> Result<()> {
    let program = build_static("headstart-lab-functions", "lambda")?;
    let code = Scratch::new("handler")?;
    std::fs::write(code.path().join("app.py"), CODE)?;
    let mut python = Command::new("/usr/bin/python3");
    python
        .args(["-m", "awslambdaric", "app.handler"])
        .env("PYTHONPATH", python_client()?)
        .current_dir(code.path());
    let keys = "memory = \"256MiB\"\nmax_instances = 1\n";
    let mut clients = [
        ("awslambdaric", LambdaFunction::python(CODE, keys)?, python),
        ("lambda_runtime", LambdaFunction::program(&program, keys)?, Command::new(&program)),
    ];
    let turns = run.many(TURNS, QUICK_TURNS);
    run.expect((1 + turns) * clients.len() * 2);
    for (client, function, command) in &mut clients {
        let init = build_static("headstart-init", "headstart-init")?;
        let agent = unbounded().setting("init", &format!("{init:?}")).config(function.section()).start()?;
        for turn in 0..=turns {
            for way in run.order(2) {
                let (name, times) = if way == 0 {
                    run.step(&format!("{client} by the agent"))?;
                    ("headstart", by_agent(&agent, function)?)
                } else {
                    run.step(&format!("{client} on a plain loop"))?;
                    ("plain", on_a_loop(command)?)
                };
                // The first warms caches.
                if turn > 0 {
                    let labels = [("client", *client), ("by", name)];
                    run.samples.add(COLD, &labels, "ms", ms(times.cold));
                    times.warm.iter().for_each(|time| run.samples.add(WARM, &labels, "ms", ms(*time)));
                }
            }
        }
        let [ours, plain] = ["headstart", "plain"].map(|by| [("client", *client), ("by", by)]);
        for (ratio, figure) in [("handler_cold_ratio", COLD), ("handler_warm_ratio", WARM)] {
            run.samples.derive_ratio(ratio, &[("client", *client)], 50.0, (figure, &ours), (figure, &plain));
        }
        ensure!(agent.stop()?.success());
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What a turn has taken.
struct Times {
    cold: Duration,
    warm: Vec<Duration>,
}

fn by_agent(agent: &RunningAgent, function: &LambdaFunction) -> Result<Times> {
    agent.stop_function(LambdaFunction::NAME)?;
    agent.wait_function(LambdaFunction::NAME, "at rest", LIMIT, |function| {
        function["state"] == "cold" && function["prepared"] == 1 && function["removing"] == 0
    })?;
    let ask = || {
        let begin = Instant::now();
        let reply = function.ask("GET", "/?a=1", "", b"")?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(begin.elapsed())
    };
    Ok(Times { cold: ask()?, warm: (0..REQUESTS).map(|_| ask()).collect::<Result<_>>()? })
}

fn on_a_loop(command: &mut Command) -> Result<Times> {
    let server = PlainServer::start()?;
    let begin = Instant::now();
    let _handler = server.run(command)?;
    server.invoke()?;
    let cold = begin.elapsed();
    let ask = || {
        let begin = Instant::now();
        server.invoke()?;
        Ok(begin.elapsed())
    };
    Ok(Times { cold, warm: (0..REQUESTS).map(|_| ask()).collect::<Result<_>>()? })
}

/// The event of a request as [`by_agent`] makes it.
const EVENT: &str = r#"{"version":"2.0","routeKey":"$default","rawPath":"/","rawQueryString":"a=1","headers":{"connection":"close",
"content-length":"0","host":"localhost","x-forwarded-for":"127.0.0.1","x-forwarded-proto":"http"},"queryStringParameters":{"a":"1"},
"requestContext":{"accountId":"anonymous","apiId":"handler","domainName":"localhost","domainPrefix":"localhost","http":{"method":
"GET","path":"/","protocol":"HTTP/1.1","sourceIp":"127.0.0.1","userAgent":null},"requestId":"1","routeKey":"$default","stage":
"$default","time":"12/Mar/2020:19:03:58 +0000","timeEpoch":1583348638390},"isBase64Encoded":false}"#;

/// A server of the Runtime API that does no more than it must, with a thread for each connection.
struct PlainServer {
    address: String,
    events: Sender<()>,
    answers: Receiver<()>,
}

/// A handler. Killed on drop.
struct Handler(Child);

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl PlainServer {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?.to_string();
        let ((events, taken), (answered, answers)) = (channel(), channel());
        let taken = Arc::new(Mutex::new(taken));
        thread::spawn(move || {
            // It ends with the bench: the handler of a turn is gone by then, and its connections too.
            for stream in listener.incoming().flatten() {
                let (taken, answered) = (Arc::clone(&taken), answered.clone());
                thread::spawn(move || serve(stream, &taken, &answered));
            }
        });
        Ok(Self { address, events, answers })
    }

    fn run(&self, command: &mut Command) -> Result<Handler> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.env("AWS_LAMBDA_RUNTIME_API", &self.address).env("_HANDLER", "app.handler");
        for (name, value) in [("NAME", "handler"), ("VERSION", "$LATEST"), ("MEMORY_SIZE", "256")] {
            command.env(format!("AWS_LAMBDA_FUNCTION_{name}"), value);
        }
        Ok(Handler(command.spawn()?))
    }

    fn invoke(&self) -> Result<()> {
        self.events.send(())?;
        self.answers.recv_timeout(LIMIT).context("the handler has not answered")
    }
}

/// Answers the requests of one connection until it ends.
fn serve(stream: TcpStream, events: &Mutex<Receiver<()>>, answers: &Sender<()>) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = (BufReader::new(stream.try_clone()?), stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let low = head.to_lowercase();
        let length = low.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
        reader.read_exact(&mut vec![0; length.unwrap_or(0)])?;
        if head.contains("/next ") {
            events.lock().unwrap_or_else(PoisonError::into_inner).recv()?;
            let deadline = u64::MAX >> 20;
            let length = EVENT.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nlambda-runtime-aws-request-id: 1\r\n\
                 lambda-runtime-deadline-ms: {deadline}\r\nlambda-runtime-invoked-function-arn: arn\r\n\
                 lambda-runtime-trace-id: Root=1\r\ncontent-length: {length}\r\n\r\n{EVENT}"
            );
            writer.write_all(answer.as_bytes())?;
        } else {
            answers.send(())?;
            writer.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")?;
        }
    }
}
