//! Answers to clients that no instance will serve in time.
//!
//! The agent takes them out of the accept queue itself. A client of HTTP gets its status with `Retry-After` (RFC 9110,
//! 10.2.3; RFC 6585, 4), any other, and all with `overload = "reset"`, a connection reset.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use headstart_config::Overload;
use socket2::{SockRef, Socket};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::http;

/// Clients that are being answered at a time, on the whole node; more are reset.
const ANSWERS_MAX: usize = 256;

static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(ANSWERS_MAX)));

/// How clients are answered that no instance serves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    /// In which form.
    pub(crate) how: Overload,
    /// When they may come again.
    pub(crate) retry_after: Duration,
    /// The text for clients of HTTP.
    pub(crate) why: &'static str,
}

/// Takes clients out of the accept queue of one listener, on a thread beside the runtime.
///
/// Instances have the same open file description: one that clears `O_NONBLOCK` can make accept(2) wait, also just after
/// the agent has set the flag. Then this thread waits, one for each listener at most, until the next client comes.
pub(crate) struct Answers {
    listener: Arc<OwnedFd>,
    work: Arc<Mutex<Work>>,
}

#[derive(Default)]
struct Work {
    /// Clients that are still to be answered.
    left: u32,
    /// Clients that were answered.
    taken: u64,
    running: bool,
}

impl Answers {
    /// Of this listener.
    pub(crate) fn new(listener: Arc<OwnedFd>) -> Self {
        Self { listener, work: Arc::default() }
    }

    /// Answers up to `count` clients, those that have waited longest. `done` is called by the thread at its end, with the
    /// number of clients and why no more could be accepted, unless none waits any more. When a thread is under way, it
    /// takes on these clients too and `done` is dropped.
    pub(crate) fn answer(
        &self,
        count: u32,
        answer: Answer,
        done: impl FnOnce(u32, io::Result<()>) + Send + 'static,
    ) {
        let mut work = lock(&self.work);
        work.left = work.left.saturating_add(count);
        if count == 0 || std::mem::replace(&mut work.running, true) {
            return;
        }
        let (listener, work) = (Arc::clone(&self.listener), Arc::clone(&self.work));
        tokio::task::spawn_blocking(move || {
            let (taken, result) = take(&listener, &work, answer);
            // The caller may open another listener at the same address now.
            drop(listener);
            done(taken, result);
        });
    }

    /// The listener.
    pub(crate) fn listener(&self) -> &Arc<OwnedFd> {
        &self.listener
    }

    /// Clients that will be answered and are still in the accept queue, and clients that were answered.
    pub(crate) fn progress(&self) -> (u32, u64) {
        let work = lock(&self.work);
        (work.left, work.taken)
    }

    /// Whether the thread is under way.
    pub(crate) fn is_running(&self) -> bool {
        lock(&self.work).running
    }
}

fn lock(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(listener: &OwnedFd, work: &Mutex<Work>, answer: Answer) -> (u32, io::Result<()>) {
    let listener = SockRef::from(listener);
    let mut taken = 0;
    loop {
        {
            let mut work = lock(work);
            if work.left == 0 {
                work.running = false;
                return (taken, Ok(()));
            }
        }
        let client = listener.set_nonblocking(true).and_then(|()| listener.accept());
        let mut work = lock(work);
        let result = match client {
            Ok((client, _)) => {
                (work.left, work.taken) = (work.left.saturating_sub(1), work.taken + 1);
                drop(work);
                taken += 1;
                turn_away(client, answer);
                continue;
            }
            // That client has left already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                work.left = work.left.saturating_sub(1);
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        };
        (work.left, work.running) = (0, false);
        return (taken, result);
    }
}

fn turn_away(client: Socket, Answer { how, retry_after, why }: Answer) {
    forget_linger(&client);
    let Some(head) = head(how, retry_after) else { return reset(&client) };
    let Ok(place) = Arc::clone(&PLACES).try_acquire_owned() else { return reset(&client) };
    tokio::spawn(async move {
        // A client that leaves early needs no answer.
        let _ = tell(client, &head, why).await;
        drop(place);
    });
}

/// `SO_LINGER` is inherited from the listener, on which an instance may have set it: to close could wait for as long.
fn forget_linger(client: &Socket) {
    // An option that every socket has.
    let _ = client.set_linger(None);
}

async fn tell(client: Socket, head: &str, why: &str) -> io::Result<()> {
    client.set_nonblocking(true)?;
    let mut client = TcpStream::from_std(client.into())?;
    if !http::reply(&mut client, head, why).await? {
        reset(&SockRef::from(&client));
    }
    Ok(())
}

/// The end, when it is dropped, is a reset and not a FIN (socket(7), `SO_LINGER`).
fn reset(client: &Socket) {
    // An option that every socket has.
    let _ = client.set_linger(Some(Duration::ZERO));
}

/// Status and header of the answer, if it is one.
fn head(how: Overload, retry_after: Duration) -> Option<String> {
    let status = match how {
        Overload::Http503 => "503 Service Unavailable",
        Overload::Http429 => "429 Too Many Requests",
        Overload::Reset => return None,
    };
    let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
    Some(format!("{status}\r\nRetry-After: {}\r\nContent-Type: text/plain", seconds.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{Ipv4Addr, SocketAddr, TcpStream as Client};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    fn listening() -> (std::os::fd::OwnedFd, SocketAddr) {
        let listener = crate::serve::listen((Ipv4Addr::LOCALHOST, 0).into(), 16).unwrap();
        let socket = Socket::from(listener);
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket.into(), address)
    }

    /// Answers up to `count` clients, and returns how many there were.
    async fn ask(answers: &Answers, count: u32, how: Overload) -> u32 {
        let (sender, done) = tokio::sync::oneshot::channel();
        let retry_after = Duration::from_millis(1500);
        answers.answer(count, Answer { how, retry_after, why: "why\n" }, |taken, result| {
            sender.send(result.map(|()| taken)).unwrap();
        });
        done.await.unwrap().unwrap()
    }

    async fn asked(address: SocketAddr, request: &'static [u8]) -> io::Result<String> {
        let client = tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(address)?;
            client.write_all(request)?;
            let mut text = String::new();
            client.read_to_string(&mut text)?;
            Ok(text)
        });
        client.await.unwrap()
    }

    async fn exchange(how: Overload, request: &'static [u8]) -> io::Result<String> {
        let (listener, address) = listening();
        let client = tokio::spawn(asked(address, request));
        let mut watch = crate::serve::QueueWatch::new(Arc::new(listener.try_clone().unwrap()));
        let (sender, mut came) = tokio::sync::mpsc::channel(8);
        watch.arm(Duration::ZERO, move |at_ns| {
            let sender = sender.clone();
            async move { sender.send(at_ns).await.unwrap() }
        });
        came.recv().await.unwrap();
        let answers = Answers::new(Arc::new(listener));
        assert_eq!(ask(&answers, 5, how).await, 1, "only one waits");
        assert_eq!(answers.progress(), (0, 1));
        client.await.unwrap()
    }

    #[tokio::test]
    async fn clients_of_http_are_told_when_to_come_again() {
        for (how, status) in [(Overload::Http503, "503 Service"), (Overload::Http429, "429 Too Many")] {
            let text = exchange(how, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{text}");
            assert!(text.contains("\r\nRetry-After: 2\r\n") && text.ends_with("\r\n\r\nwhy\n"), "{text}");
        }
    }

    /// Each accept(2) of the agent meets a listener that may have lost its flag in that moment.
    #[tokio::test]
    async fn an_instance_that_clears_the_flag_holds_up_nobody() {
        let (listener, address) = listening();
        let listener = Arc::new(listener);
        let (instance, over) = (listener.try_clone().unwrap(), Arc::new(AtomicBool::new(false)));
        let clearing = std::thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let rescue = Instant::now() + Duration::from_secs(20);
                while !over.load(Ordering::Relaxed) {
                    if Instant::now() > rescue {
                        let _ = SockRef::from(&instance).shutdown(std::net::Shutdown::Both);
                        panic!("the runtime waits for a client");
                    }
                    SockRef::from(&instance).set_nonblocking(false).unwrap();
                }
            }
        });
        let answers = Answers::new(Arc::clone(&listener));
        let answer = Answer { how: Overload::Http503, retry_after: Duration::ZERO, why: "" };
        let ask = || answers.answer(1, answer, |_, _| {});
        // No client waits: a thread that waits is one that met the cleared flag.
        for _ in 0..1000 {
            ask();
            tokio::task::yield_now().await;
        }
        over.store(true, Ordering::Relaxed);
        clearing.join().unwrap();
        let client = tokio::spawn(asked(address, b"GET / HTTP/1.1\r\n\r\n"));
        while !client.is_finished() {
            ask();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(client.await.unwrap().unwrap().starts_with("HTTP/1.1 503 "));
        while answers.is_running() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(answers.progress(), (0, 1));
    }

    /// Closing with unsent data waits for as long as the listener says (socket(7), `SO_LINGER`).
    #[tokio::test]
    async fn a_client_does_not_linger_because_its_listener_does() {
        let (listener, address) = listening();
        SockRef::from(&listener).set_linger(Some(Duration::from_secs(2))).unwrap();
        let _client = Client::connect(address).unwrap();
        let (accepted, _) = Socket::from(listener).accept().unwrap();
        assert!(accepted.linger().unwrap().is_some(), "what the kernel does");
        forget_linger(&accepted);
        assert_eq!(accepted.linger().unwrap(), None);
    }

    #[tokio::test]
    async fn others_are_reset() {
        for (how, request) in [
            (Overload::Http503, b"\x16\x03\x01 no HTTP\n\n".as_slice()),
            (Overload::Reset, b"GET / HTTP/1.1\r\n\r\n"),
        ] {
            let error = exchange(how, request).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{how:?}");
        }
    }
}
