//! PostgreSQL on loopback and in a namespace.

use crate::common::{LIMIT, can_network, connect_time};
use headstart_integration_tests::{
    lab::privilege,
    lab::{Delay, Link, Namespace, PostgresServer, PostgresSetup},
};
use std::{io::Read, net::TcpStream, time::Duration};

fn can_serve() -> bool {
    privilege::require_root("PostgreSQL runs as a user of its own")
        && privilege::require_tools(&["/usr/lib/postgresql"])
}

#[test]
fn a_database_on_loopback_is_ready_with_its_user() {
    if !can_serve() {
        return;
    }
    let database = PostgresSetup::default().setting("max_connections", "17").start().unwrap();
    assert_eq!(database.sql("select current_user || '@' || current_database()").unwrap(), "app@orders");
    assert_eq!(database.sql("show max_connections").unwrap(), "17");
    let kept = database.admin_sql("select rolpassword from pg_authid where rolname = 'app'").unwrap();
    assert!(kept.starts_with("SCRAM-SHA-256"), "{kept}");
    assert!(!database.log().contains(PostgresServer::PASSWORD));
    assert!(database.socket_dir().join(format!(".s.PGSQL.{}", database.address().port())).exists());
    assert!(database.url().contains("app:"));
    assert!(database.password_file().unwrap().exists());
}

#[test]
fn a_restart_breaks_connections_and_keeps_data_and_address() {
    if !can_serve() {
        return;
    }
    let mut database = PostgresServer::on_loopback().unwrap();
    database.sql("create table kept as select 42 as answer").unwrap();
    let mut connection = TcpStream::connect(database.address()).unwrap();
    database.restart().unwrap();
    connection.set_read_timeout(Some(LIMIT)).unwrap();
    assert!(matches!(connection.read(&mut [0; 64]), Ok(0) | Err(_)), "the old connection is closed");
    assert_eq!(database.sql("select answer from kept").unwrap(), "42");

    database.stop().unwrap();
    assert!(TcpStream::connect(database.address()).is_err());
    database.start().unwrap();
    assert!(TcpStream::connect(database.address()).is_ok());
}

#[test]
fn a_database_can_be_a_round_trip_away() {
    if !can_serve() || !can_network() {
        return;
    }
    let site = Namespace::new("database").unwrap();
    let link = Link::connect(&site).unwrap();
    let database = PostgresServer::inside(&site, link.peer(5432)).unwrap();
    let _delay = Delay::new(&site, Duration::from_millis(5)).unwrap();
    assert!(connect_time(database.address()) >= Duration::from_millis(4));
    // The unix socket is a way around the network, for checks that must not be slow.
    assert_eq!(database.sql("select 1").unwrap(), "1");
}
