//! What is promised of frozen instances.

use super::*;

/// A function that never rests.
const BUSY: &str = "trap 'exit 5' TERM; while :; do :; done";

/// Some twenty clock ticks: there is no event when nothing happens.
const A_WHILE: Duration = Duration::from_millis(200);

/// A busy instance that has begun.
async fn busy(bed: &Bed) -> PreparedContainer {
    let parked = bed.prepare(BUSY).await;
    parked.process.release().await.unwrap();
    bed.eventually(|| (bed.ticks(&*parked.process) > 1).then_some(())).await;
    parked
}

pub(super) async fn frozen_stands_still_until_it_is_thawed(bed: Bed) {
    let parked = busy(&bed).await;
    let process = &*parked.process;
    for _ in 0..2 {
        process.freeze().await.unwrap();
        let before = bed.ticks(process);
        assert!(tokio::time::timeout(A_WHILE, process.exited()).await.is_err());
        assert_eq!(bed.ticks(process), before, "it used the processor");
        process.thaw().await.unwrap();
        bed.eventually(|| (bed.ticks(process) > before).then_some(())).await;
    }
    // Once more does no harm.
    process.thaw().await.unwrap();
    process.freeze().await.unwrap();
    process.freeze().await.unwrap();
    process.remove().await.unwrap();
    bed.assert_no_trace();
}

pub(super) async fn the_frozen_can_be_removed(bed: Bed) {
    let parked = bed.prepare("trap '' TERM; sleep 60 & while :; do :; done").await;
    parked.process.release().await.unwrap();
    bed.eventually(|| (bed.ticks(&*parked.process) > 1).then_some(())).await;
    parked.process.freeze().await.unwrap();
    parked.process.remove().await.unwrap();
    assert_eq!(parked.process.exited().await.signal, Some(9));
    bed.assert_no_trace();
}

pub(super) async fn the_frozen_hear_that_they_shall_stop(bed: Bed) {
    let parked = busy(&bed).await;
    parked.process.freeze().await.unwrap();
    parked.process.terminate().await;
    let exit = tokio::time::timeout(SOON, parked.process.exited()).await.expect("it ends");
    assert_eq!(exit.code, Some(5), "{exit}");
    parked.process.remove().await.unwrap();
    bed.assert_no_trace();
}

pub(super) async fn the_dead_are_not_frozen(bed: Bed) {
    let parked = bed.prepare("exit 0").await;
    parked.process.release().await.unwrap();
    parked.process.exited().await;
    let error = parked.process.freeze().await.unwrap_err();
    assert_eq!(error.reason(), "freeze", "{error}");
    assert!(error.to_string().contains("ended"), "{error}");
    parked.process.thaw().await.unwrap();
    parked.process.remove().await.unwrap();
    parked.process.thaw().await.unwrap();
    bed.assert_no_trace();
}

pub(super) async fn frozen_survivors_may_finish_too(bed: Bed) {
    let polite = busy(&bed).await;
    let stubborn = bed.prepare("trap '' TERM; while :; do :; done").await;
    stubborn.process.release().await.unwrap();
    bed.eventually(|| (bed.ticks(&*stubborn.process) > 1).then_some(())).await;
    polite.process.freeze().await.unwrap();
    stubborn.process.freeze().await.unwrap();
    let survivors = bed.survivors().await;
    assert_eq!(survivors.running(), 2);
    survivors.end(Duration::from_secs(2)).await;
    let ended = async |survivor: PreparedContainer| {
        tokio::time::timeout(SOON, survivor.process.exited()).await.expect("it ended")
    };
    assert_eq!(ended(polite).await.code, Some(5));
    assert_eq!(ended(stubborn).await.signal, Some(9));
    bed.assert_no_trace();
}
