//! Does the same with tokio-postgres over a direct connection and as functions of an agent do, and prints what came of it.

use std::env::var;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio_postgres::{Client, Config, NoTls};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let held = var("WAY")? == "held";
    let function = if held { Some(headstart::attach().await?) } else { None };
    let mut seen = Vec::new();
    for turn in 0..2 {
        match &function {
            Some(function) => {
                session(&function.backend(format!("db{turn}")).postgres().await?, &mut seen).await?
            }
            None => {
                let (client, connection) = config()?.connect(NoTls).await?;
                let connection = tokio::spawn(connection);
                session(&client, &mut seen).await?;
                drop(client);
                connection.await??;
            }
        }
    }
    if !held {
        // The key that cancels a query is not the function's.
        let (client, connection) = config()?.connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        let token = client.cancel_token();
        let query = client.batch_execute("select pg_sleep(30)");
        let cancel = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            token.cancel_query(NoTls).await
        };
        let (queried, cancelled) = tokio::join!(query, cancel);
        cancelled?;
        let code = queried.err().and_then(|error| error.code().cloned());
        seen.push(format!("cancelled: {code:?}"));
        drop(client);
        connection.await??;
    }
    println!("{{\"version\": {:?}, \"seen\": {seen:?}}}", var("VERSION")?);
    Ok(())
}

fn config() -> Result<Config> {
    let mut config = Config::new();
    match var("WAY")?.as_str() {
        "socket" => config.host_path(var("SOCKET")?),
        _ => config.host(var("HOST")?).port(var("PORT")?.parse()?),
    };
    if let Ok(password) = var("PASSWORD") {
        config.password(password);
    }
    config.user(var("USER_NAME")?).dbname(var("DATABASE")?).options("-c search_path=a");
    Ok(config)
}

async fn session(client: &Client, seen: &mut Vec<String>) -> Result<()> {
    let row = client.query_one("select $1::int + 1, $2::text", &[&41, &"text"]).await?;
    seen.push(format!("parameters: {} {}", row.get::<_, i32>(0), row.get::<_, &str>(1)));
    let error = client.query_one("select nothing", &[]).await.err();
    seen.push(format!("error: {:?}", error.and_then(|error| error.code().cloned())));
    client.batch_execute("create temporary table t (i int); insert into t values (1), (1)").await?;
    seen.push(format!("matched rows: {}", client.execute("update t set i = 1", &[]).await?));
    client.batch_execute("set search_path = b; reset all").await?;
    let path = client.query_one("show search_path", &[]).await.context("after reset")?;
    seen.push(format!("after reset: {}", path.get::<_, &str>(0)));
    Ok(())
}
