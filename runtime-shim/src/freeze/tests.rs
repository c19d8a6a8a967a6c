use super::*;
use crate::testing::{FakeAgent, attached};
use headstart_wire::ToFunction;
use std::sync::atomic::{AtomicU32, Ordering};

const FREEZE: ToFunction = ToFunction::Freeze { return_backends: false };
const THAW: ToFunction = ToFunction::Thaw {};

async fn asked(agent: &FakeAgent, question: &ToFunction) -> ToAgent {
    agent.0.send(question, &[]).unwrap();
    agent.next_message().await
}

#[tokio::test]
async fn one_that_does_not_count_or_is_busy_is_not_frozen() {
    let (agent, function) = attached(Vec::new()).await;
    assert_eq!(asked(&agent, &FREEZE).await, ToAgent::Busy {}, "nobody knows whether anybody is connected");
    let open = function.track();
    assert_eq!(asked(&agent, &FREEZE).await, ToAgent::Busy {});
    drop(open);
    for _ in 0..3 {
        assert_eq!(asked(&agent, &FREEZE).await, ToAgent::Quiet {});
        assert!(function.places().is_paused());
        assert!(matches!(asked(&agent, &THAW).await, ToAgent::Thawed { thawed_ns: 1.. }));
        assert!(!function.places().is_paused());
    }
    assert!(matches!(asked(&agent, &THAW).await, ToAgent::Thawed { .. }), "it was not frozen after all");
}

#[tokio::test]
async fn hooks_run_in_order_before_and_after_and_a_failing_one_keeps_it_up() {
    let (agent, function) = attached(Vec::new()).await;
    drop(function.track());
    let steps = Arc::new(AtomicU32::new(0));
    let fails = Arc::new(AtomicU32::new(0));
    for (number, before) in [(1, true), (2, true), (3, false), (4, false)] {
        let (steps, fails) = (Arc::clone(&steps), Arc::clone(&fails));
        let hook = move || {
            let (steps, fails) = (Arc::clone(&steps), Arc::clone(&fails));
            async move {
                if fails.load(Ordering::SeqCst) == number {
                    return Err("full disk".into());
                }
                let before = steps.swap(number, Ordering::SeqCst);
                assert!(before == number - 1 || (number == 1 && before == 4), "{before} then {number}");
                Ok(())
            }
        };
        if before { function.on_freeze(hook) } else { function.on_thaw(hook) }
    }
    assert_eq!(asked(&agent, &FREEZE).await, ToAgent::Quiet {});
    assert_eq!(steps.load(Ordering::SeqCst), 2);
    asked(&agent, &THAW).await;
    assert_eq!(steps.load(Ordering::SeqCst), 4);
    fails.store(1, Ordering::SeqCst);
    steps.store(2, Ordering::SeqCst);
    assert_eq!(asked(&agent, &FREEZE).await, ToAgent::Busy {});
    assert_eq!(steps.load(Ordering::SeqCst), 4, "what the hooks before it may have done is undone");
    assert!(!function.places().is_paused());
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_never_ends_keeps_it_up() {
    let (agent, function) = attached(Vec::new()).await;
    drop(function.track());
    function.on_freeze(std::future::pending);
    agent.0.send(&FREEZE, &[]).unwrap();
    tokio::time::sleep(HOOKS_WAIT * 2).await;
    assert_eq!(agent.next_message().await, ToAgent::Busy {});
    assert!(!function.places().is_paused());
}

#[tokio::test]
async fn when_the_agent_is_gone_it_accepts_again() {
    let (agent, function) = attached(Vec::new()).await;
    drop(function.track());
    assert_eq!(asked(&agent, &FREEZE).await, ToAgent::Quiet {});
    drop(agent);
    let accepts = async {
        while function.places().is_paused() {
            tokio::task::yield_now().await
        }
    };
    timeout(crate::testing::PATIENCE, accepts).await.unwrap();
}
