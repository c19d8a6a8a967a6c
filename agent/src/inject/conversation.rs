//! The exchange with one instance: what each message means, and what the agent answers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use headstart_injector::{AUDIT, Pool};
use headstart_wire::{
    AuditFields, Channel, Flow, Grant, GrantStatus, Lease, ToAgent, ToFunction, WireError, refuse_descriptors,
};

use super::endpoint::{self, Endpoint};
use super::grants::Grants;
use super::{
    ACK_TIMEOUT, LEASES_MAX, MESSAGES_BURST, MESSAGES_PER_SECOND, ProtocolViolation, Resources, ShimEvent,
    until,
};
use crate::bucket::TokenBucket;
use crate::measure;
use crate::start::{ControlEnd, Process};

/// How far an instance is in the exchange. Every message is allowed at exactly one point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ExchangeProgress {
    Nothing,
    Hello,
    Injected,
    Ready,
    Served,
}

/// The agent's side of one instance's control socket.
pub struct Conversation {
    resources: Resources,
    instance: String,
    endpoint: Endpoint,
    grants: Grants,
    /// What the instance may send.
    messages: TokenBucket,
    progress: ExchangeProgress,
    /// An earlier agent began the exchange: a message may be the answer to that agent, and is then ignored.
    resumed: bool,
    /// Requests that the instance has not answered.
    freezes_unanswered: u32,
    thaws_unanswered: u32,
    /// The instance is quiet and was not thawed: it may be unable to read.
    quiet: bool,
    /// The first lease, kept until the instance is connected.
    unsent: Option<(Lease, Vec<OwnedFd>)>,
    /// The grants of the first lease. They are logged when the lease has arrived, so that the log does not delay the
    /// start.
    first_grants: Vec<Grant>,
    /// Why the control socket was closed, if the instance broke the protocol.
    violation: Option<String>,
}

impl Conversation {
    /// Takes a connection of every backend from its pool, or begins to make one, and queues the lease if the instance
    /// inherits its control socket. `page` is the page on which the instance counts its connections.
    ///
    /// # Errors
    /// When the socket cannot be watched, or the lease cannot be queued.
    pub fn begin(
        resources: Resources,
        instance: &str,
        control: ControlEnd,
        page: OwnedFd,
    ) -> Result<Self, WireError> {
        let mut grants = Grants::new(&resources.function, resources.tls);
        let mut descriptors = vec![page];
        let mut backends = Vec::new();
        for pool in resources.given() {
            let (grant, descriptor) = grants.first(pool);
            backends.push(grant);
            descriptors.extend(descriptor);
        }
        let (function, concurrency) = (resources.function.clone(), resources.concurrency);
        let first_grants = backends.clone();
        let lease = Lease { function, instance: instance.to_owned(), concurrency, backends };
        let mut conversation = Self {
            resources,
            instance: instance.to_owned(),
            endpoint: Endpoint::new(control)?,
            grants,
            messages: TokenBucket::new(MESSAGES_BURST, MESSAGES_PER_SECOND),
            progress: ExchangeProgress::Nothing,
            freezes_unanswered: 0,
            thaws_unanswered: 0,
            quiet: false,
            resumed: false,
            unsent: Some((lease, descriptors)),
            first_grants,
            violation: None,
        };
        conversation.send_lease()?;
        Ok(conversation)
    }

    /// Goes on where an earlier agent stopped: `control` is connected to an instance that was ready and that holds a
    /// connection of each backend in `held`.
    ///
    /// # Errors
    /// When the socket is not a packet socket, or cannot be watched.
    pub fn resume(
        resources: Resources,
        instance: &str,
        control: OwnedFd,
        held: &[String],
    ) -> Result<Self, WireError> {
        let grants = Grants::inherited(&resources.function, resources.tls, held, &resources.pools);
        let control = Channel::from(control);
        control.set_nonblocking(true)?;
        // An earlier agent may not have done so.
        let _ = refuse_descriptors(&control);
        Ok(Self {
            resources,
            instance: instance.to_owned(),
            endpoint: Endpoint::new(ControlEnd::Connected(control))?,
            grants,
            messages: TokenBucket::new(MESSAGES_BURST, MESSAGES_PER_SECOND),
            progress: ExchangeProgress::Ready,
            resumed: true,
            freezes_unanswered: 0,
            thaws_unanswered: 0,
            quiet: false,
            unsent: None,
            first_grants: Vec::new(),
            violation: None,
        })
    }

    /// The control socket, if the instance is connected.
    #[must_use]
    pub fn control(&self) -> Option<BorrowedFd<'_>> {
        self.endpoint.channel().map(AsFd::as_fd)
    }

    /// The backend of each connection that the instance holds.
    #[must_use]
    pub fn held(&self) -> Vec<String> {
        self.grants.held().map(str::to_owned).collect()
    }

    /// How the instance broke the protocol, if it did.
    #[must_use]
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// A backend that has no connection for the instance: its last one was refused, or the server cannot be reached.
    #[must_use]
    pub fn unavailable_backend(&self) -> Option<&str> {
        let down = || self.resources.pools.iter().find(|pool| pool.is_down()).map(Pool::name);
        self.grants.refused().or_else(down)
    }

    /// Asks the instance whether it can be frozen; it answers [`ShimEvent::Quiet`] or [`ShimEvent::Busy`].
    ///
    /// # Errors
    /// When the message cannot be sent.
    pub fn freeze(&mut self, return_backends: bool) -> Result<(), WireError> {
        self.tell(&ToFunction::Freeze { return_backends })?;
        self.freezes_unanswered += 1;
        Ok(())
    }

    /// Tells the instance that it runs again, or is not frozen after all; it answers [`ShimEvent::Thawed`].
    ///
    /// # Errors
    /// When the message cannot be sent.
    pub fn thaw(&mut self) -> Result<(), WireError> {
        self.tell(&ToFunction::Thaw {})?;
        self.thaws_unanswered += 1;
        self.quiet = false;
        self.grants.renew();
        Ok(())
    }

    fn tell(&self, message: &ToFunction) -> Result<(), WireError> {
        self.endpoint.channel().ok_or(WireError::Closed)?.send(message, &[])
    }

    /// Sends the lease once the instance is connected. The agent's copies of the descriptors
    /// are closed here; descriptors in flight belong to the instance.
    fn send_lease(&mut self) -> Result<(), WireError> {
        let Some(channel) = self.endpoint.channel() else { return Ok(()) };
        let Some((lease, descriptors)) = self.unsent.take() else { return Ok(()) };
        let listener = std::iter::once(self.resources.listener.as_fd());
        let all: Vec<_> = listener.chain(descriptors.iter().map(AsFd::as_fd)).collect();
        channel.send(&ToFunction::Lease(lease), &all)
    }

    /// The next event that the instance's task must know. Safe to drop and call again.
    ///
    /// `process` tells whether a peer belongs to the instance.
    pub async fn next(&mut self, process: &dyn Process) -> ShimEvent {
        loop {
            if self.endpoint.is_closed() {
                return ShimEvent::Closed;
            }
            let overdue = if self.quiet { None } else { self.grants.overdue(ACK_TIMEOUT) };
            let can_grant = self.unsent.is_none() && !self.quiet;
            let pause = self.messages.wait();
            let step = tokio::select! {
                received = self.endpoint.next(process), if pause.is_none() => {
                    self.messages.take(1);
                    self.received(received)
                }
                () = until(pause), if pause.is_some() => Ok(None),
                // A connection that is made before the lease is sent follows right after the lease.
                (grant, descriptor) = self.grants.next(), if can_grant => {
                    let change = descriptor.is_some().then_some(ShimEvent::BackendsChanged);
                    self.send_grant(grant, descriptor).map(|()| change)
                }
                () = until(overdue) => Err(ProtocolViolation::NoAck),
            };
            match step {
                Ok(Some(event)) => return event,
                Ok(None) => {}
                Err(violation) => {
                    self.close(&violation);
                    return ShimEvent::Closed;
                }
            }
        }
    }

    fn received(
        &mut self,
        received: endpoint::EndpointEvent,
    ) -> Result<Option<ShimEvent>, ProtocolViolation> {
        match received {
            endpoint::EndpointEvent::Connected => {
                self.send_lease()?;
                Ok(None)
            }
            endpoint::EndpointEvent::Message(message) => match self.message(message?) {
                Err(ProtocolViolation::OutOfOrder { .. }) if self.resumed => Ok(None),
                outcome => outcome,
            },
        }
    }

    fn message(&mut self, message: ToAgent) -> Result<Option<ShimEvent>, ProtocolViolation> {
        let (name, from, to, event) = match message {
            ToAgent::Hello { shim, hello_ns } => {
                let shim: String = shim.chars().take(64).collect();
                tracing::debug!(instance = self.instance, ?shim, "hello");
                ("hello", ExchangeProgress::Nothing, ExchangeProgress::Hello, ShimEvent::Hello { hello_ns })
            }
            ToAgent::Ack { injected_ns } => {
                if self.progress >= ExchangeProgress::Injected && self.grants.acknowledged() {
                    return Ok(None);
                }
                for grant in std::mem::take(&mut self.first_grants) {
                    audit(&self.instance, &grant);
                }
                (
                    "ack",
                    ExchangeProgress::Hello,
                    ExchangeProgress::Injected,
                    ShimEvent::Injected { injected_ns },
                )
            }
            ToAgent::Ready { ready_ns } => {
                ("ready", ExchangeProgress::Injected, ExchangeProgress::Ready, ShimEvent::Ready { ready_ns })
            }
            ToAgent::Served { accept_ns, first_response_ns } => {
                let served = ShimEvent::Served { accept_ns, first_response_ns };
                ("served", ExchangeProgress::Ready, ExchangeProgress::Served, served)
            }
            ToAgent::Request { backend } => return self.request(&backend),
            ToAgent::NextKey { connection, flow } => return self.next_key(connection, flow),
            ToAgent::Returned { backend, connection } => {
                if self.grants.returned(&backend, connection) {
                    return Ok(Some(ShimEvent::BackendsChanged));
                }
                return Err(ProtocolViolation::OutOfOrder { message: "returned" });
            }
            ToAgent::Quiet {} => {
                let event = answer(&mut self.freezes_unanswered, "quiet", ShimEvent::Quiet)?;
                self.quiet = self.thaws_unanswered == 0;
                return Ok(event);
            }
            ToAgent::Busy {} => return answer(&mut self.freezes_unanswered, "busy", ShimEvent::Busy),
            ToAgent::Thawed { thawed_ns } => {
                return answer(&mut self.thaws_unanswered, "thawed", ShimEvent::Thawed { thawed_ns });
            }
        };
        if self.progress != from {
            return Err(ProtocolViolation::OutOfOrder { message: name });
        }
        self.progress = to;
        Ok(Some(event))
    }

    fn request(&mut self, backend: &str) -> Result<Option<ShimEvent>, ProtocolViolation> {
        if self.progress < ExchangeProgress::Injected {
            return Err(ProtocolViolation::OutOfOrder { message: "request" });
        }
        let Some(pool) = self.resources.pools.iter().find(|pool| pool.name() == backend) else {
            return Err(ProtocolViolation::NotConfigured { backend: backend.chars().take(64).collect() });
        };
        if self.grants.count() >= LEASES_MAX {
            return Err(ProtocolViolation::TooMany);
        }
        let (grant, descriptor) = self.grants.first(pool);
        match descriptor {
            // A pending grant needs no message: the function knows that it has asked.
            None => Ok(None),
            Some(descriptor) => {
                self.send_grant(grant, Some(descriptor)).map(|()| Some(ShimEvent::BackendsChanged))
            }
        }
    }

    fn next_key(&mut self, connection: u64, flow: Flow) -> Result<Option<ShimEvent>, ProtocolViolation> {
        // This agent does not know the names that an earlier one gave.
        if !self.resumed && !self.grants.is_held(connection) {
            return Err(ProtocolViolation::OutOfOrder { message: "next_key" });
        }
        let key = self.grants.next_key(connection, flow);
        self.tell(&ToFunction::NextKey { connection, flow, key })?;
        Ok(None)
    }

    fn send_grant(&mut self, grant: Grant, descriptor: Option<OwnedFd>) -> Result<(), ProtocolViolation> {
        let Some(channel) = self.endpoint.channel() else { return Ok(()) };
        let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
        audit(&self.instance, &grant);
        channel.send(&ToFunction::Grant(grant), &descriptors)?;
        if !descriptors.is_empty() {
            self.grants.sent();
        }
        Ok(())
    }

    fn close(&mut self, violation: &ProtocolViolation) {
        self.endpoint.close();
        self.unsent = None;
        if !matches!(violation, ProtocolViolation::Wire(WireError::Closed)) {
            self.violation = Some(violation.to_string());
            measure::record_refused(violation.reason());
            tracing::warn!(
                function = self.resources.function,
                instance = self.instance,
                reason = violation.reason(),
                "control socket closed: {violation}"
            );
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.endpoint.close();
    }
}

/// Takes the answer to one of the agent's requests.
fn answer(
    unanswered: &mut u32,
    message: &'static str,
    event: ShimEvent,
) -> Result<Option<ShimEvent>, ProtocolViolation> {
    *unanswered = unanswered.checked_sub(1).ok_or(ProtocolViolation::OutOfOrder { message })?;
    Ok(Some(event))
}

/// Logs each connection that is handed over: which instance got which session.
fn audit(instance: &str, grant: &Grant) {
    let GrantStatus::Ready { session, tls, .. } = &grant.status else { return };
    let (backend, tls_handed_over) = (grant.backend.as_str(), tls.is_some());
    let tls_in_kernel = tls.as_ref().is_some_and(|session| session.keys.is_none());
    let AuditFields { process_id, connection_id, user, database } = session.audit_fields();
    tracing::info!(
        target: AUDIT,
        instance,
        backend,
        process_id,
        connection_id,
        user,
        database,
        tls_handed_over,
        tls_in_kernel,
        "connection handed over"
    );
}
