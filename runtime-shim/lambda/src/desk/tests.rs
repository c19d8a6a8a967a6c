use super::*;
use tokio::time::advance;

const TIMEOUT: Duration = Duration::from_secs(3);

fn event(id: &str) -> Event {
    Event { id: id.to_owned(), body: Bytes::new(), trace: String::new() }
}

/// A desk with a handler that has asked for its first event, and its request.
fn serving(places: usize) -> (Arc<Desk>, oneshot::Receiver<Taken>) {
    let desk = Desk::new(places, TIMEOUT);
    desk.starts();
    let poll = desk.next();
    (desk, poll)
}

fn invoked(desk: &Arc<Desk>, id: &'static str) -> tokio::task::JoinHandle<Answer> {
    let desk = Arc::clone(desk);
    tokio::spawn(async move { desk.invoke(event(id)).await })
}

fn whole() -> Answer {
    Answer::Whole(Bytes::from_static(b"{}"))
}

async fn failure(answer: tokio::task::JoinHandle<Answer>) -> Failure {
    match answer.await.unwrap() {
        Answer::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_is_taken_and_answered_once() {
    let (desk, poll) = serving(1);
    let answer = invoked(&desk, "a");
    assert_eq!(poll.await.unwrap().event.id, "a");
    assert_eq!(desk.answer("b", whole()), Err(UnknownInvocation));
    assert_eq!(desk.answer("a", whole()), Ok(()));
    assert_eq!(desk.answer("a", whole()), Err(UnknownInvocation));
    assert!(matches!(answer.await.unwrap(), Answer::Whole(_)));
}

#[tokio::test(start_paused = true)]
async fn no_more_are_under_way_than_there_are_places() {
    let (desk, first) = serving(1);
    let second = desk.next();
    let (one, two) = (invoked(&desk, "a"), invoked(&desk, "b"));
    assert_eq!(first.await.unwrap().event.id, "a");
    tokio::task::yield_now().await;
    desk.answer("a", whole()).unwrap();
    assert_eq!(second.await.unwrap().event.id, "b");
    desk.answer("b", whole()).unwrap();
    assert!(matches!((one.await.unwrap(), two.await.unwrap()), (Answer::Whole(_), Answer::Whole(_))));
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_client_has_gone_or_whose_request_was_given_up_is_not_lost_on_others() {
    let (desk, poll) = serving(1);
    drop(poll);
    let gone = invoked(&desk, "a");
    tokio::task::yield_now().await;
    gone.abort();
    let _ = gone.await;
    let stays = invoked(&desk, "b");
    tokio::task::yield_now().await;
    assert_eq!(desk.next().await.unwrap().event.id, "b");
    desk.answer("b", whole()).unwrap();
    assert!(matches!(stays.await.unwrap(), Answer::Whole(_)));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_is_late_goes_when_the_others_have_ended() {
    let (desk, first) = serving(2);
    let second = desk.next();
    let late = invoked(&desk, "a");
    first.await.unwrap();
    advance(Duration::from_secs(1)).await;
    let other = invoked(&desk, "b");
    second.await.unwrap();
    advance(Duration::from_secs(2)).await;
    desk.expire();
    assert_eq!(failure(late).await, Failure::Timeout);
    assert_eq!(desk.answer("a", whole()), Err(UnknownInvocation), "it is too late");
    let waits = invoked(&desk, "c");
    let third = desk.next();
    tokio::task::yield_now().await;
    desk.answer("b", whole()).unwrap();
    assert!(matches!(other.await.unwrap(), Answer::Whole(_)));
    assert!(matches!(desk.dismissed().await, Dismissal::Condemned(_)));
    desk.ended();
    assert!(third.await.is_err(), "it has not got what waits");
    desk.wanted().await;
    desk.starts();
    assert_eq!(desk.next().await.unwrap().event.id, "c");
    desk.answer("c", whole()).unwrap();
    assert!(matches!(waits.await.unwrap(), Answer::Whole(_)));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_asks_for_nothing_goes() {
    let (desk, poll) = serving(1);
    drop(poll);
    let answer = invoked(&desk, "a");
    tokio::task::yield_now().await;
    assert_eq!(desk.next_deadline(), Some(Instant::now() + TIMEOUT));
    advance(TIMEOUT).await;
    desk.expire();
    assert_eq!(failure(answer).await, Failure::NotTaken);
    assert!(matches!(desk.dismissed().await, Dismissal::Condemned(_)));
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_start_has_its_time_from_then() {
    let desk = Desk::new(1, TIMEOUT);
    desk.starts();
    let answer = invoked(&desk, "a");
    tokio::task::yield_now().await;
    assert_eq!(desk.next_deadline(), None);
    advance(TIMEOUT * 2).await;
    desk.expire();
    assert_eq!(desk.next().await.unwrap().event.id, "a");
    desk.ended();
    assert_eq!(failure(answer).await, Failure::Ended);
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_quiet_when_its_handler_waits() {
    let (desk, poll) = serving(1);
    desk.quiet().await;
    let answer = invoked(&desk, "a");
    poll.await.unwrap();
    assert!(tokio::time::timeout(TIMEOUT, desk.quiet()).await.is_err());
    desk.answer("a", whole()).unwrap();
    answer.await.unwrap();
    assert!(tokio::time::timeout(TIMEOUT, desk.quiet()).await.is_err(), "it does not ask");
    let _poll = desk.next();
    desk.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_fails_only_before_the_first_event() {
    let (desk, _poll) = serving(1);
    assert!(!desk.init_failed("late".to_owned()));
    desk.ended();
    desk.starts();
    assert!(desk.init_failed("no module".to_owned()));
    assert_eq!(desk.dismissed().await, Dismissal::InitError("no module".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn nothing_waits_at_the_end() {
    let desk = Desk::new(1, TIMEOUT);
    let answer = invoked(&desk, "a");
    tokio::task::yield_now().await;
    desk.close();
    assert_eq!(failure(answer).await, Failure::Ended);
    assert_eq!(failure(invoked(&desk, "b")).await, Failure::Ended);
}
