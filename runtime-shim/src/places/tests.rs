use super::*;
use crate::testing::PATIENCE;
use std::net::TcpStream as Client;
use tokio::time::timeout;

fn listening() -> (TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (TcpListener::from_std(listener).unwrap(), address)
}

#[tokio::test]
async fn no_more_are_accepted_than_there_are_places_and_a_free_one_wakes_the_next() {
    let (listener, address) = listening();
    let (page, _descriptor) = Activity::create().unwrap();
    let places = Places::new(Some(page), Some(2));
    places.count();
    places.limit(100);
    let _clients: Vec<_> = (0..3).map(|_| Client::connect(address).unwrap()).collect();
    let first = places.accept(&listener).await.unwrap();
    let _second = places.accept(&listener).await.unwrap();
    timeout(PATIENCE, places.full()).await.unwrap();
    let third = tokio::spawn({
        let places = Arc::clone(&places);
        async move { places.accept(&listener).await.unwrap() }
    });
    tokio::task::yield_now().await;
    assert!(!third.is_finished());
    assert_eq!(places.page.as_ref().unwrap().read().open, Some(2));
    drop(first);
    let _third = timeout(PATIENCE, third).await.unwrap().unwrap();
    let seen = places.page.as_ref().unwrap().read();
    assert_eq!((seen.open, seen.accepted), (Some(2), 3));
}

#[tokio::test]
async fn a_pause_leaves_clients_in_the_queue_and_needs_quiet() {
    let (listener, address) = listening();
    let places = Places::new(None, None);
    assert!(!places.pause(), "nobody knows whether anybody is connected");
    places.count();
    let open = places.open();
    assert!(!places.pause() && !places.is_paused());
    drop(open);
    // It waits for clients already.
    let accepting = tokio::spawn({
        let places = Arc::clone(&places);
        async move { places.accept(&listener).await.unwrap() }
    });
    tokio::task::yield_now().await;
    assert!(places.pause() && places.is_paused());
    let _client = Client::connect(address).unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!accepting.is_finished());
    places.resume();
    timeout(PATIENCE, accepting).await.unwrap().unwrap();
}

#[tokio::test]
async fn two_instances_share_a_listener_and_the_paused_one_takes_nobody() {
    let (listener, address) = listening();
    let twin = listener.into_std().unwrap();
    let other = TcpListener::from_std(twin.try_clone().unwrap()).unwrap();
    let (paused, awake) = (Places::new(None, None), Places::new(None, None));
    paused.count();
    let mine = TcpListener::from_std(twin).unwrap();
    let sleeping = tokio::spawn({
        let paused = Arc::clone(&paused);
        async move { paused.accept(&mine).await.unwrap() }
    });
    tokio::task::yield_now().await;
    assert!(paused.pause());
    for _ in 0..50 {
        let _client = Client::connect(address).unwrap();
        timeout(PATIENCE, awake.accept(&other)).await.unwrap().unwrap();
    }
    assert!(!sleeping.is_finished());
}
