//! Every way to log in to a real PostgreSQL, and what the function gets of it.

mod common;

use std::os::unix::fs::symlink;
use std::time::Instant;

use common::{Adopted, PASSWORD, Postgres, postgres, relayed, spec};
use headstart_injector::{
    Address, BackendKind, BackendSpec, ConnectCause, HandOver, LeaseError, Pool, PostgresLogin, Session,
};

fn backend(login: PostgresLogin, address: Address) -> BackendSpec {
    spec(BackendKind::Postgres(login), address)
}

async fn lease(spec: BackendSpec) -> Result<HandOver, LeaseError> {
    Pool::spawn(spec).lease().await.map(relayed)
}

async fn cause(spec: BackendSpec) -> String {
    let error = lease(spec).await.expect_err("no lease");
    for text in [format!("{error}"), format!("{error:?}")] {
        assert!(!text.contains(PASSWORD) && text.contains("orders-db"), "{text}");
    }
    error.to_string()
}

#[tokio::test]
async fn every_method_logs_in_over_tcp_and_unix_socket() {
    let Some(server) = Postgres::start() else { return };
    for (role, over_tcp) in [("truster", true), ("hasher", true), ("scrammer", true), ("shouter", false)] {
        for address in [Some(server.tcp()).filter(|_| over_tcp), Some(server.socket())].into_iter().flatten()
        {
            let name = format!("{role} at {address}");
            let lease = lease(backend(postgres(role), address)).await.expect(&name);
            let session = serde_json::to_string(&lease.session).expect("JSON");
            assert!(!session.contains(PASSWORD), "{session}");
            let Session::Postgres { process_id, parameters, user, database } = lease.session else {
                panic!("{name}: {session}");
            };
            assert_eq!((user.as_str(), database.as_str()), (role, "orders"));
            assert!(parameters.contains(&("application_name".into(), String::new())), "{parameters:?}");
            assert!(parameters.iter().any(|(name, _)| name == "server_version"), "{parameters:?}");

            let mut client = Adopted::new(lease.fd);
            assert_eq!(client.query("select 1").as_deref(), Ok("1"), "{name}");
            assert_eq!(client.query("select pg_backend_pid()"), Ok(process_id.to_string()), "{name}");
            assert_eq!(client.query("select current_user").as_deref(), Ok(role));
        }
    }

    symlink(format!(".s.PGSQL.{}", server.port), server.socket_directory().join(".s.PGSQL.5432"))
        .expect("a link");
    let directory = Address::Unix(server.socket_directory().to_owned());
    assert!(lease(backend(postgres("scrammer"), directory)).await.is_ok());
}

#[tokio::test]
async fn refusals_name_backend_and_cause_but_no_password() {
    let Some(server) = Postgres::start() else { return };
    let text = cause(backend(postgres("shouter"), server.tcp())).await;
    assert!(text.contains("only over a unix socket"), "{text}");
    for role in ["scrammer", "hasher"] {
        let mut login = postgres(role);
        login.password = Some(format!("not-{PASSWORD}").into());
        let text = cause(backend(login, server.tcp())).await;
        assert!(text.contains("28P01") && text.contains("will not help"), "{text}");
    }
    let nowhere = PostgresLogin { database: "nowhere".into(), ..postgres("truster") };
    let text = cause(backend(nowhere, server.socket())).await;
    assert!(text.contains("3D000") && text.contains("nowhere"), "{text}");
    let passwordless = PostgresLogin { password: None, ..postgres("scrammer") };
    let text = cause(backend(passwordless, server.tcp())).await;
    assert!(text.contains("none is configured"), "{text}");
    let mut login = postgres("truster");
    login.options.insert("no_such_setting".into(), "1".into());
    let text = cause(backend(login, server.tcp())).await;
    assert!(text.contains("42704"), "{text}");
}

#[tokio::test]
async fn options_and_warm_query_take_effect() {
    let Some(server) = Postgres::start() else { return };
    let mut login = postgres("scrammer");
    login.options.insert("search_path".into(), "warm, public".into());
    login.warm_up = vec![
        "select count(*) from pg_class join pg_attribute on attrelid = pg_class.oid".into(),
        "prepare next as select $1::int + 1".into(),
    ];
    let first = |spec: BackendSpec| async {
        let mut client = Adopted::new(lease(spec).await.expect("a lease").fd);
        let begun = Instant::now();
        assert!(client.query("select count(*) from pg_class where relname = 'x'").is_ok());
        println!("first catalogue query: {:?}", begun.elapsed());
        client.query("show search_path")
    };
    let cold = PostgresLogin { warm_up: Vec::new(), ..login.clone() };
    assert_eq!(first(backend(cold, server.socket())).await.as_deref(), Ok("warm, public"));
    assert_eq!(first(backend(login.clone(), server.socket())).await.as_deref(), Ok("warm, public"));

    let lease_of = lease(backend(login.clone(), server.socket())).await.expect("a lease");
    let prepared = Adopted::new(lease_of.fd).query("execute next(41)");
    assert_eq!(prepared.as_deref(), Ok("42"), "what was prepared is there");

    login.warm_up = vec!["begin".into()];
    let error = lease(backend(login.clone(), server.tcp())).await.expect_err("not quiet");
    assert!(error.to_string().contains("transaction"), "{error}");

    login.warm_up = vec!["select 1".into(), "select no_such_column".into()];
    let error = lease(backend(login, server.tcp())).await.expect_err("no lease");
    let LeaseError::Connect(error) = error else { panic!("{error}") };
    assert!(matches!(&error.cause, ConnectCause::Server { sqlstate, .. } if sqlstate == "42703"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_cancels_the_query_of_its_connection() {
    let Some(server) = Postgres::start() else { return };
    let lease = lease(backend(postgres("scrammer"), server.tcp())).await.expect("a lease");
    assert!(!format!("{:?}", lease.slot).contains(PASSWORD));
    let mut client = Adopted::new(lease.fd);
    let query = tokio::task::spawn_blocking(move || client.query("select pg_sleep(60)"));
    // The request has no effect before the query runs.
    while !query.is_finished() {
        assert!(lease.slot.cancel_query().await.expect("sent"));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(query.await.expect("no panic"), Err("57014".into()));
}
