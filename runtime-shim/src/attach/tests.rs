use super::*;
use crate::testing::{FakeAgent, PATIENCE, failed, marked, pending, ready};
use headstart_wire::{Session, VERSION};
use std::os::fd::AsRawFd;

const SHORT: Duration = Duration::from_millis(20);

fn pair() -> (FakeAgent, Channel) {
    let (agent, function) = Channel::pair().unwrap();
    (FakeAgent(agent), function)
}

#[test]
fn each_descriptor_of_a_lease_goes_to_its_backend() {
    let (agent, channel) = pair();
    let ((_a, first), (_b, second)) = (marked(1), marked(2));
    let backends = vec![
        ready("a", Session::Tcp, first),
        pending("b"),
        failed("c", "refused"),
        ready("d", Session::Tcp, second),
    ];
    agent.lease(backends);
    let Attachment::Agent(attached) = Attachment::over(channel, 7, PATIENCE).unwrap() else {
        panic!("there is an agent")
    };
    let marks = attached.backends.into_iter().map(|(grant, socket)| {
        let mark = socket.map(crate::testing::mark_of);
        (grant.backend, mark)
    });
    let expected = [("a", Some(1)), ("b", None), ("c", None), ("d", Some(2))];
    assert_eq!(marks.collect::<Vec<_>>(), expected.map(|(name, mark)| (name.to_owned(), mark)));
    assert!(attached.listener.local_addr().unwrap().port() > 0);
}

#[test]
fn an_agent_that_says_nothing_is_an_error_in_time() {
    let (_agent, channel) = pair();
    let error = Attachment::over(channel, 7, SHORT).unwrap_err();
    assert!(matches!(error, Error::LeaseTimeout { waited: SHORT }), "{error:?}");
}

#[test]
fn an_agent_that_leaves_before_the_lease_is_an_error() {
    let (agent, channel) = pair();
    drop(agent);
    let error = Attachment::over(channel, 7, PATIENCE).unwrap_err();
    assert!(matches!(error, Error::Lease(WireError::Closed)), "{error:?}");
}

#[test]
fn another_version_is_named_in_the_error() {
    let (agent, channel) = pair();
    let packet = [b'H', b'S', VERSION + 1, 0, b'{', b'}'];
    nix::sys::socket::send(agent.0.as_raw_fd(), &packet, nix::sys::socket::MsgFlags::empty()).unwrap();
    let error = Attachment::over(channel, 7, PATIENCE).unwrap_err();
    assert_eq!(
        crate::report::chain(&error),
        format!(
            "the agent's lease cannot be received: a control message has version {}, this side speaks {VERSION}: \
             rebuild the function or the agent",
            VERSION + 1
        )
    );
}

#[test]
fn a_grant_before_the_lease_is_refused() {
    let (agent, channel) = pair();
    agent.grant(failed("db", "refused"));
    let error = Attachment::over(channel, 7, PATIENCE).unwrap_err();
    assert!(matches!(error, Error::GrantBeforeLease), "{error:?}");
}
