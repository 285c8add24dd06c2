//! Kept guests over the fake engine: several callers cool, wake, use and end them at once.

use std::sync::Arc;

use kiln_engine::kept::{Ended, KeepPolicy, KeptError, KeptState, KeptVm, Temperature, WakeError};
use kiln_engine::{Engine, FakeEngine, SaveError};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::saves::{one, prepared};
use super::{DEADLINE, Lab, shell, until};

/// Callers that use a guest at once.
const ASKERS: usize = 24;

async fn keep(engine: &Arc<FakeEngine>) -> KeptVm {
    let fork = one(engine, &prepared(engine).await).await;
    KeptVm::keep(Arc::clone(engine) as Arc<dyn Engine>, fork, KeepPolicy::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_guest_cools_and_wakes_over_the_fake_engine() {
    let lab = Lab::new();
    let engine = Arc::new(lab.engine());
    let kept = keep(&engine).await;
    for temperature in [Temperature::Warm, Temperature::Cold] {
        kept.cool(temperature).await.expect("cools");
        assert_eq!(kept.inspect().await.expect("is kept").temperature, temperature);
        let hot = kept.ensure_hot().await.expect("wakes");
        assert_eq!(shell(hot.link(), "cat file").await, "prepared");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_requests_wake_a_cold_guest_once() {
    let lab = Lab::new();
    let engine = Arc::new(lab.engine());
    let kept = keep(&engine).await;
    kept.cool(Temperature::Cold).await.expect("cools");
    assert_eq!(lab.agents(), 0);
    let ask = |_| {
        let kept = kept.clone();
        tokio::spawn(async move { kept.ensure_hot().await })
    };
    let requests: Vec<_> = (0..100).map(ask).collect();
    for request in requests {
        request.await.expect("no panic").expect("wakes");
    }
    assert_eq!(lab.agents(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_in_use_is_not_cooled() {
    let lab = Lab::new();
    let engine = Arc::new(lab.engine());
    let kept = keep(&engine).await;
    let mut askers = JoinSet::new();
    for number in 0..ASKERS {
        let user = kept.clone();
        askers.spawn(async move {
            let hot = user.ensure_hot().await.expect("wakes");
            // Two writes, and no cooling may come between them.
            shell(hot.link(), &format!("echo begun {number} >>log; echo ended {number} >>log")).await;
        });
        let cooler = kept.clone();
        let to = if number % 2 == 0 { Temperature::Warm } else { Temperature::Cold };
        askers.spawn(async move {
            match cooler.cool(to).await {
                Ok(()) | Err(SaveError::Busy) => {}
                Err(error) => panic!("{error:?}"),
            }
        });
    }
    let all = async { while askers.join_next().await.transpose().expect("no panic").is_some() {} };
    timeout(DEADLINE, all).await.expect("all of them are answered");

    kept.cool(Temperature::Cold).await.expect("it is not in use");
    assert_eq!((kept.state(), lab.agents()), (KeptState::Cold, 0));
    let hot = kept.ensure_hot().await.expect("wakes");
    let lines = shell(hot.link(), "grep -c begun log; grep -c ended log; sort -u log | wc -l").await;
    assert_eq!(lines, format!("{ASKERS}\n{ASKERS}\n{}", 2 * ASKERS), "each of them once, in one guest");
    assert_eq!(lab.agents(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_is_in_use_is_not_cooled() {
    let lab = Lab::new();
    let engine = Arc::new(lab.engine());
    let kept = keep(&engine).await;
    for temperature in [Temperature::Warm, Temperature::Cold] {
        let [one, other] = [kept.ensure_hot().await.expect("is hot"), kept.ensure_hot().await.expect("is hot")];
        for hot in [one, other] {
            assert!(matches!(kept.cool(temperature).await, Err(SaveError::Busy)));
            assert_eq!(shell(hot.link(), "cat file").await, "prepared");
            drop(hot);
        }
        kept.cool(temperature).await.expect("it is not in use");
        // Cooling a guest that is cool already is not counted as a second cooling.
        kept.cool(temperature).await.expect("is so already");
        assert_eq!(kept.inspect().await.expect("is kept").temperature, temperature);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_in_the_middle_answers_all_callers() {
    let lab = Lab::new();
    let engine = Arc::new(lab.engine());
    for temperature in [Temperature::Hot, Temperature::Warm, Temperature::Cold] {
        let kept = keep(&engine).await;
        kept.cool(temperature).await.expect("cools");
        let mut askers = JoinSet::new();
        for number in 0..ASKERS {
            let kept = kept.clone();
            askers.spawn(async move {
                match number % 3 {
                    0 => match kept.ensure_hot().await {
                        Ok(_) | Err(WakeError::Ended(Ended::Destroyed)) => {}
                        // The guest was killed during the request.
                        Err(WakeError::Warm(_) | WakeError::Cold(_)) => {}
                        Err(error) => panic!("{error:?}"),
                    },
                    1 => drop(kept.cool(Temperature::Cold).await),
                    _ => match kept.snapshot("in the middle").await {
                        Ok(_) | Err(KeptError::Wake(_) | KeptError::Save(_)) => {}
                        Err(error) => panic!("{error:?}"),
                    },
                }
            });
        }
        timeout(DEADLINE, kept.destroy()).await.expect("in time").expect("is destroyed");
        let all = async { while askers.join_next().await.transpose().expect("no panic").is_some() {} };
        timeout(DEADLINE, all).await.expect("all of them are answered");
        assert_eq!(timeout(DEADLINE, kept.ended()).await.expect("is over"), Ended::Destroyed);
        assert!(matches!(kept.ensure_hot().await, Err(WakeError::Ended(Ended::Destroyed))));
        until(|| lab.vms().is_empty()).await;
    }
}
