//! Where invocations wait for the handler, and where it takes and answers them. One lock, which is held for no I/O.
//!
//! ```text
//! waiting ──next──> running ──response, error──> answered
//!    │                 │ its time is over, or the handler ends: answered with that
//!    └ its time is over: answered with that
//! ```
//!
//! A handler of which an invocation has timed out, or that asks for none while one waits, gets no more: when the others that
//! run have ended, it is replaced.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::answer::{Answer, Failure};

/// An event on its way to the handler.
#[derive(Debug)]
pub(crate) struct Event {
    /// The number of the invocation, a UUID.
    pub(crate) id: String,
    /// JSON.
    pub(crate) body: Bytes,
    /// For X-Ray, in the form of its header.
    pub(crate) trace: String,
}

/// An event that the handler takes.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) event: Event,
    pub(crate) time_left: Duration,
}

#[derive(Debug)]
struct Waiting {
    event: Event,
    answer: oneshot::Sender<Answer>,
    since: Instant,
}

#[derive(Debug)]
struct Running {
    /// None once the answer streams.
    answer: Option<oneshot::Sender<Answer>>,
    deadline: Instant,
}

/// The handler's process, as the desk knows it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum HandlerState {
    /// There is none.
    #[default]
    None,
    /// It has not asked yet.
    Starting,
    /// It has asked, the first time at this moment.
    Serving(Instant),
    /// It gets nothing more.
    Condemned(&'static str),
}

#[derive(Debug, Default)]
struct State {
    handler: HandlerState,
    init_error: Option<String>,
    waiting: VecDeque<Waiting>,
    polls: VecDeque<oneshot::Sender<Taken>>,
    running: HashMap<String, Running>,
    /// The function ends.
    closed: bool,
}

/// Why a handler must go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Dismissal {
    /// It has said that it cannot start.
    InitError(String),
    /// It has failed at this.
    Condemned(&'static str),
    /// The function ends.
    Closed,
}

/// The desk of an instance.
#[derive(Debug)]
pub(crate) struct Desk {
    places: usize,
    timeout: Duration,
    state: Mutex<State>,
    changed: Notify,
}

/// The invocation is unknown, or it has been answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownInvocation;

impl Desk {
    /// A desk for at most `places` invocations at a time, each of which may take `timeout`.
    pub(crate) fn new(places: usize, timeout: Duration) -> Arc<Self> {
        Arc::new(Self { places, timeout, state: Mutex::default(), changed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn places(&self) -> usize {
        self.places
    }

    /// Queues an event. The answer comes, whatever happens.
    pub(crate) async fn invoke(&self, event: Event) -> Answer {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.state();
            if state.closed {
                return Answer::Failed(Failure::Ended);
            }
            state.waiting.push_back(Waiting { event, answer, since: Instant::now() });
            self.hand_out(&mut state);
        }
        answered.await.unwrap_or(Answer::Failed(Failure::Ended))
    }

    /// The handler asks for its next event.
    pub(crate) fn next(&self) -> oneshot::Receiver<Taken> {
        let (poll, polled) = oneshot::channel();
        let mut state = self.state();
        if state.handler == HandlerState::Starting {
            state.handler = HandlerState::Serving(Instant::now());
        }
        state.polls.retain(|poll| !poll.is_closed());
        state.polls.push_back(poll);
        self.hand_out(&mut state);
        polled
    }

    fn hand_out(&self, state: &mut State) {
        while let HandlerState::Serving(_) = state.handler
            && state.running.len() < self.places
            && let Some(Waiting { event, answer, since }) = state.waiting.pop_front()
        {
            // The client has gone.
            if answer.is_closed() {
                continue;
            }
            let Some(poll) = state.polls.pop_front() else {
                state.waiting.push_front(Waiting { event, answer, since });
                break;
            };
            let id = event.id.clone();
            match poll.send(Taken { event, time_left: self.timeout }) {
                Ok(()) => {
                    let deadline = Instant::now() + self.timeout;
                    state.running.insert(id, Running { answer: Some(answer), deadline });
                }
                // The handler has given that request up.
                Err(Taken { event, .. }) => state.waiting.push_front(Waiting { event, answer, since }),
            }
        }
        self.changed.notify_waiters();
    }

    /// The handler answers.
    pub(crate) fn answer(&self, id: &str, answer: Answer) -> Result<(), UnknownInvocation> {
        let mut state = self.state();
        let running = state.running.get_mut(id).ok_or(UnknownInvocation)?;
        let sender = running.answer.take().ok_or(UnknownInvocation)?;
        state.running.remove(id);
        // The client may have gone.
        let _ = sender.send(answer);
        self.hand_out(&mut state);
        Ok(())
    }

    /// Whether the handler may answer this invocation, and until when.
    pub(crate) fn deadline_of(&self, id: &str) -> Result<Instant, UnknownInvocation> {
        let state = self.state();
        let running = state.running.get(id).filter(|running| running.answer.is_some());
        running.map(|running| running.deadline).ok_or(UnknownInvocation)
    }

    /// The handler begins to stream its answer; the invocation runs until [`streamed`](Self::streamed).
    pub(crate) fn streams(&self, id: &str, answer: Answer) -> Result<(), UnknownInvocation> {
        let mut state = self.state();
        let running = state.running.get_mut(id).ok_or(UnknownInvocation)?;
        let _ = running.answer.take().ok_or(UnknownInvocation)?.send(answer);
        Ok(())
    }

    /// The answer has been streamed.
    pub(crate) fn streamed(&self, id: &str) {
        let mut state = self.state();
        state.running.remove(id);
        self.hand_out(&mut state);
    }

    /// The handler cannot start. False if it has started already.
    pub(crate) fn init_failed(&self, error: String) -> bool {
        let mut state = self.state();
        let starting = state.handler == HandlerState::Starting;
        if starting {
            state.init_error = Some(error);
            self.changed.notify_waiters();
        }
        starting
    }

    /// A process of the handler is about to start.
    pub(crate) fn starts(&self) {
        self.state().handler = HandlerState::Starting;
    }

    /// The process of the handler has ended; what it had taken is answered with that.
    pub(crate) fn ended(&self) {
        let mut state = self.state();
        state.handler = HandlerState::None;
        state.init_error = None;
        state.polls.clear();
        for (_, Running { answer, .. }) in state.running.drain() {
            let _ = answer.map(|answer| answer.send(Answer::Failed(Failure::Ended)));
        }
        self.changed.notify_waiters();
    }

    /// Nothing is invoked any more.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for Waiting { answer, .. } in mem::take(&mut state.waiting) {
            let _ = answer.send(Answer::Failed(Failure::Ended));
        }
        self.changed.notify_waiters();
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let state = self.state();
        let running = state.running.values().map(|running| running.deadline).min();
        let waiting = match state.handler {
            HandlerState::Serving(asked) => {
                state.waiting.front().map(|waiting| waiting.since.max(asked) + self.timeout)
            }
            _ => None,
        };
        running.into_iter().chain(waiting).min()
    }

    /// Answers the invocations whose time is over, and condemns the handler for it.
    pub(crate) fn expire(&self) {
        let now = Instant::now();
        let mut state = self.state();
        let late = |running: &Running| running.deadline <= now;
        if state.running.values().any(late) {
            state.handler = HandlerState::Condemned("an invocation has taken longer than `timeout`");
        }
        state.running.retain(|_, running| {
            let late = late(running);
            if late && let Some(answer) = running.answer.take() {
                let _ = answer.send(Answer::Failed(Failure::Timeout));
            }
            !late
        });
        if let HandlerState::Serving(asked) = state.handler {
            let mut unheard = false;
            let (timeout, waiting) = (self.timeout, mem::take(&mut state.waiting));
            for waiting in waiting {
                if waiting.since.max(asked) + timeout <= now {
                    unheard |= !waiting.answer.is_closed();
                    let _ = waiting.answer.send(Answer::Failed(Failure::NotTaken));
                } else {
                    state.waiting.push_back(waiting);
                }
            }
            if unheard && state.running.is_empty() {
                state.handler = HandlerState::Condemned("it asks for no event");
            }
        }
        self.hand_out(&mut state);
    }

    /// Resolves when there must be a handler: an invocation waits, or the function ends.
    pub(crate) async fn wanted(&self) {
        self.until(|state| (!state.waiting.is_empty() || state.closed).then_some(())).await;
    }

    /// Resolves when the function ends.
    pub(crate) async fn closed(&self) {
        self.until(|state| state.closed.then_some(())).await;
    }

    /// Whether the function ends.
    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Resolves when a handler has asked for its first event.
    pub(crate) async fn asked(&self) {
        self.until(|state| matches!(state.handler, HandlerState::Serving(_)).then_some(())).await;
    }

    /// Whether the handler has not asked for its first event.
    pub(crate) fn is_starting(&self) -> bool {
        self.state().handler == HandlerState::Starting
    }

    /// Resolves when nothing is under way: the handler waits for its next event, or there is none.
    pub(crate) async fn quiet(&self) {
        self.until(|state| {
            let waits = match state.handler {
                HandlerState::None => true,
                HandlerState::Serving(_) => state.polls.iter().any(|poll| !poll.is_closed()),
                HandlerState::Starting | HandlerState::Condemned(_) => false,
            };
            (waits && state.running.is_empty() && state.waiting.is_empty()).then_some(())
        })
        .await;
    }

    /// Resolves when the handler must go.
    pub(crate) async fn dismissed(&self) -> Dismissal {
        self.until(|state| match (&state.init_error, state.handler) {
            (Some(error), _) => Some(Dismissal::InitError(error.clone())),
            (None, HandlerState::Condemned(why)) if state.running.is_empty() => {
                Some(Dismissal::Condemned(why))
            }
            _ if state.closed => Some(Dismissal::Closed),
            _ => None,
        })
        .await
    }

    /// Resolves when the state has changed in a way that may concern [`next_deadline`](Self::next_deadline).
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    async fn until<T>(&self, mut found: impl FnMut(&State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            if let Some(found) = found(&self.state()) {
                return found;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests;
