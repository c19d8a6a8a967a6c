use super::*;
use crate::Function;
use crate::testing::{FakeAgent, PATIENCE, attached, failed, mark_of, marked, pending, ready};
use headstart_wire::Session;
use std::io::Read;

const SHORT: Duration = Duration::from_millis(20);

async fn take(function: &Function, backend: &str, wait: Duration) -> Result<GrantedConnection, Reason> {
    function.agent().unwrap().take(backend, wait).await
}

/// Takes in the background.
fn taking(function: &Function, backend: &'static str) -> tokio::task::JoinHandle<Result<u8, Reason>> {
    let function = function.clone();
    tokio::spawn(async move { take(&function, backend, PATIENCE).await.map(|it| mark_of(it.socket)) })
}

async fn heard_request(agent: &FakeAgent, expected: &str) {
    assert_eq!(agent.next_message().await, ToAgent::Request { backend: expected.into() });
}

#[tokio::test]
async fn the_leased_connection_comes_first_and_one_more_is_requested() {
    let ((_a, leased), (_b, more)) = (marked(1), marked(2));
    let (agent, function) = attached(vec![ready("db", Session::Tcp, leased)]).await;
    assert_eq!(mark_of(take(&function, "db", PATIENCE).await.unwrap().socket), 1);
    agent.assert_no_message();

    let second = taking(&function, "db");
    heard_request(&agent, "db").await;
    agent.grant(ready("db", Session::Tcp, more));
    assert!(matches!(agent.next_message().await, ToAgent::Ack { .. }));
    assert_eq!(second.await.unwrap(), Ok(2));
}

#[tokio::test]
async fn a_pending_grant_is_waited_for_without_a_request() {
    let (_peer, socket) = marked(3);
    let (agent, function) = attached(vec![pending("db")]).await;
    let waiting = taking(&function, "db");
    tokio::task::yield_now().await;
    agent.assert_no_message();
    agent.grant(ready("db", Session::Tcp, socket));
    assert_eq!(waiting.await.unwrap(), Ok(3));
    assert!(matches!(agent.next_message().await, ToAgent::Ack { .. }));
}

#[tokio::test]
async fn a_failure_is_told_once_and_the_next_call_asks_again() {
    let (_peer, socket) = marked(4);
    let (agent, function) = attached(vec![failed("db", "too many clients")]).await;
    let told = take(&function, "db", PATIENCE).await.unwrap_err();
    assert_eq!(told, Reason::Failed("too many clients".into()));

    let again = taking(&function, "db");
    heard_request(&agent, "db").await;
    agent.grant(ready("db", Session::Tcp, socket));
    assert_eq!(again.await.unwrap(), Ok(4));
}

#[tokio::test]
async fn a_pending_grant_can_fail() {
    let (agent, function) = attached(vec![pending("db")]).await;
    let waiting = taking(&function, "db");
    agent.grant(failed("db", "refused"));
    assert_eq!(waiting.await.unwrap(), Err(Reason::Failed("refused".into())));
}

#[tokio::test]
async fn an_unknown_name_does_not_reach_the_agent() {
    let (agent, function) = attached(vec![pending("db")]).await;
    assert_eq!(take(&function, "bd", PATIENCE).await.unwrap_err(), Reason::NotConfigured);
    agent.assert_no_message();
}

#[tokio::test]
async fn a_late_grant_serves_the_next_caller() {
    let (_peer, socket) = marked(5);
    let (agent, function) = attached(vec![pending("db")]).await;
    assert_eq!(take(&function, "db", SHORT).await.unwrap_err(), Reason::Deadline(SHORT));
    agent.grant(ready("db", Session::Tcp, socket));
    assert!(matches!(agent.next_message().await, ToAgent::Ack { .. }));
    assert_eq!(mark_of(take(&function, "db", PATIENCE).await.unwrap().socket), 5);
    agent.assert_no_message();
}

#[tokio::test]
async fn requests_of_one_backend_do_not_overlap() {
    let ((_a, first), (_b, second)) = (marked(6), marked(7));
    let (agent, function) = attached(vec![failed("db", "empty")]).await;
    take(&function, "db", PATIENCE).await.unwrap_err();
    let both = [taking(&function, "db"), taking(&function, "db")];
    for socket in [first, second] {
        heard_request(&agent, "db").await;
        tokio::time::sleep(SHORT).await;
        agent.assert_no_message();
        agent.grant(ready("db", Session::Tcp, socket));
        assert!(matches!(agent.next_message().await, ToAgent::Ack { .. }));
    }
    let mut marks = Vec::new();
    for one in both {
        marks.push(one.await.unwrap().unwrap());
    }
    marks.sort_unstable();
    assert_eq!(marks, [6, 7]);
}

#[tokio::test]
async fn without_the_agent_nobody_waits_and_what_is_there_stays_usable() {
    let (_peer, socket) = marked(8);
    let (agent, function) = attached(vec![pending("db"), ready("cache", Session::Tcp, socket)]).await;
    let waiting = taking(&function, "db");
    tokio::task::yield_now().await;
    drop(agent);
    assert_eq!(waiting.await.unwrap(), Err(Reason::AgentGone));
    assert_eq!(take(&function, "db", PATIENCE).await.unwrap_err(), Reason::AgentGone);
    assert_eq!(mark_of(take(&function, "cache", PATIENCE).await.unwrap().socket), 8);
}

#[tokio::test]
async fn a_grant_that_nobody_asked_for_is_acknowledged_and_closed() {
    let (mut peer, socket) = marked(9);
    let (agent, function) = attached(vec![failed("db", "empty")]).await;
    agent.grant(ready("db", Session::Tcp, socket));
    assert!(matches!(agent.next_message().await, ToAgent::Ack { .. }));
    // Unread data was thrown away with the socket: a reset, or the end.
    assert!(matches!(peer.read(&mut [0; 8]), Ok(0) | Err(_)));
    assert_eq!(take(&function, "db", PATIENCE).await.unwrap_err(), Reason::Failed("empty".into()));
}
