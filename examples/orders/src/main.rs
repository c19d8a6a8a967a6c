//! A small order book with axum and PostgreSQL, like many functions.
//!
//! - `GET /` answers `{"answer":42,"backend_pid":…}` with one round trip to the database.
//! - `GET /orders` lists the newest orders, `POST /orders` with `{"item":"…"}` adds one
//!   (they need the table of `schema.sql`).
//!
//! Without an agent: `PORT=8081 HEADSTART_BACKEND_ORDERS_DB_URL=postgres://app@127.0.0.1/orders orders`

use std::process::ExitCode;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use headstart::PostgresSession;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::SimpleQueryMessage;

type Db = State<PostgresSession>;

fn main() -> ExitCode {
    headstart::run(async |function| {
        // The agent has logged in: this needs no connect, no TLS and no password.
        let db = function.backend("orders-db").session().await?;
        let app = Router::new().route("/", get(root)).route("/orders", get(list).post(add)).with_state(db);
        // Reports ready, serves, and on SIGTERM finishes the requests in flight.
        function.serve(app).await
    })
}

#[derive(Serialize, Deserialize)]
struct Order {
    #[serde(default)]
    id: i32,
    item: String,
}

/// The simple protocol needs one round trip; `query` would need another one to prepare.
async fn root(State(db): Db) -> Result<Json<Value>, Failure> {
    for message in db.client().await?.simple_query("select 42 as answer, pg_backend_pid() as pid").await? {
        if let SimpleQueryMessage::Row(row) = message {
            let number = |column| row.get(column).and_then(|text: &str| text.parse::<i64>().ok());
            return Ok(Json(json!({ "answer": number("answer"), "backend_pid": number("pid") })));
        }
    }
    Ok(Json(json!({ "answer": null })))
}

async fn list(State(db): Db) -> Result<Json<Vec<Order>>, Failure> {
    let rows =
        db.client().await?.query("select id, item from orders order by id desc limit 100", &[]).await?;
    Ok(Json(rows.iter().map(|row| Order { id: row.get("id"), item: row.get("item") }).collect()))
}

async fn add(State(db): Db, Json(order): Json<Order>) -> Result<(StatusCode, Json<Order>), Failure> {
    let insert = "insert into orders (item) values ($1) returning id";
    let row = db.client().await?.query_one(insert, &[&order.item]).await?;
    Ok((StatusCode::CREATED, Json(Order { id: row.get("id"), item: order.item })))
}

/// An error of the database, for the log and not for the client.
struct Failure(Box<dyn std::error::Error>);

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        eprintln!("orders: {}", self.0);
        (StatusCode::BAD_GATEWAY, Json(json!({ "error": "the database did not answer" }))).into_response()
    }
}
