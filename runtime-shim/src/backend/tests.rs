use super::*;
use crate::attach::Attachment;
use crate::testing::{PATIENCE, attached, failed, marked, ready};
use tokio::io::AsyncReadExt;

fn postgres_session() -> Session {
    let (user, database) = ("app".into(), "orders".into());
    Session::Postgres { process_id: 1, user, database, parameters: Vec::new() }
}

/// A server that greets with one byte, and its URL.
async fn server() -> (tokio::task::JoinHandle<()>, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let serve = async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut client, b"d").await;
        }
    };
    (tokio::spawn(serve), url)
}

#[test]
fn the_variable_of_a_backend_is_a_valid_name() {
    assert_eq!(url_variable("orders-db"), "HEADSTART_BACKEND_ORDERS_DB_URL");
    assert_eq!(url_variable("cache.v2"), "HEADSTART_BACKEND_CACHE_V2_URL");
}

#[tokio::test]
async fn without_an_agent_a_url_is_used_and_counted() {
    let (server, url) = server().await;
    let function = Function::new(Attachment::Alone).unwrap();
    for _ in 0..2 {
        let mut stream = function.backend("upstream").or_url(&url).tcp().await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'd');
    }
    let [fallback] = &function.fallbacks()[..] else { panic!("one kind of fallback") };
    assert_eq!((fallback.reason.clone(), fallback.count), (Reason::NoAgent, 2));
    server.abort();
}

#[tokio::test]
async fn without_an_agent_and_a_url_the_error_says_what_to_set() {
    let function = Function::new(Attachment::Alone).unwrap();
    let error = function.backend("orders-db").tcp().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no connection of backend \"orders-db\": no agent started this process; \
         set HEADSTART_BACKEND_ORDERS_DB_URL to connect directly"
    );
    assert!(function.fallbacks().is_empty(), "nothing was connected to");
}

#[tokio::test]
async fn a_failed_grant_falls_back_to_the_url() {
    let (server, url) = server().await;
    let (_agent, function) = attached(vec![failed("upstream", "pool empty")]).await;
    let mut stream = function.backend("upstream").or_url(&url).tcp().await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'd');
    assert_eq!(function.fallbacks()[0].reason, Reason::Failed("pool empty".into()));
    server.abort();
}

#[tokio::test]
async fn an_error_of_both_ways_names_both() {
    let (_agent, function) = attached(vec![failed("upstream", "pool empty")]).await;
    // The discard port of the loopback address: nobody listens there.
    let error = function.backend("upstream").or_url("tcp://127.0.0.1:9").tcp().await.unwrap_err();
    let text = crate::report::chain(&error);
    assert!(text.contains("pool empty") && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn an_unknown_name_lists_the_configured_ones() {
    let (_agent, function) = attached(vec![failed("a", "x"), failed("b", "x")]).await;
    let error = function.backend("c").tcp().await.unwrap_err();
    assert_eq!(error.to_string(), "backend \"c\" is not configured for this function (configured: a, b)");
}

#[tokio::test]
async fn the_wrong_method_names_the_right_one() {
    let (_peer, socket) = marked(1);
    let (_agent, function) = attached(vec![ready("db", postgres_session(), socket)]).await;
    let error = function.backend("db").tcp().await.unwrap_err();
    assert_eq!(error.to_string(), "backend \"db\" is configured as postgres: use .postgres() or .socket()");
}

#[tokio::test]
async fn a_bare_socket_comes_with_its_session() {
    let (_peer, socket) = marked(5);
    let (_agent, function) = attached(vec![ready("db", postgres_session(), socket)]).await;
    let injected = function.backend("db").wait_at_most(PATIENCE).socket().await.unwrap();
    assert_eq!(injected.session, postgres_session());
    assert_eq!(crate::testing::mark_of(injected.socket), 5);
}

#[tokio::test]
async fn no_error_and_no_debug_output_shows_a_url() {
    let function = Function::new(Attachment::Alone).unwrap();
    let backend = function.backend("db").or_url("postgres://app:hunter2@db/orders");
    let debug = format!("{backend:?}");
    let error = backend.tcp().await.unwrap_err();
    assert!(!format!("{debug} {error:?} {error}").contains("hunter2"));
}
