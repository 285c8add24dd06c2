//! Metrics and logs.

use kiln_e2e::{Agent, bounded};
use kiln_engine::link::{Event, GuestLink};
use kiln_wire::{ErrorCode, LogSource, LogsRequest, Message, MetricsRequest, MetricsSample, Reply};

use crate::common::{code, sh};
use crate::files::take;
use crate::sessions::session;

async fn sample(link: &GuestLink) -> MetricsSample {
    let (_sender, receiver) =
        link.open(&Message::Metrics(MetricsRequest { interval_ms: None })).expect("the link is up");
    match &receiver.replies().await.expect("one sample")[..] {
        [Reply::Sample(sample)] => (**sample).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_sample_has_the_sizes_and_the_use_of_the_machine() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let sample = sample(&link).await;
        let cpus = std::thread::available_parallelism().expect("a number").get();
        assert!(sample.cpus as usize >= cpus, "{sample:?}");
        assert!(sample.uptime_ms > 0 && sample.cpu_busy_ms > 0, "{sample:?}");
        assert!(sample.memory_total_bytes > 64 << 20, "{sample:?}");
        assert!((1..=sample.memory_total_bytes).contains(&sample.memory_available_bytes), "{sample:?}");
        assert!(sample.disk_total_bytes > 0 && sample.disk_free_bytes <= sample.disk_total_bytes, "{sample:?}");
        assert!((100 << 10..64 << 20).contains(&sample.agent_rss_bytes), "{sample:?}");
        assert_eq!(sample.execs, []);
    });
}

#[test]
fn a_sample_names_the_commands_that_run() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let plain = link.exec(sh("sleep 1000")).await.expect("starts");
        let named = link.exec(session("one", "sleep 1000")).await.expect("starts");
        let mut execs: Vec<_> = sample(&link).await.execs.into_iter().map(|exec| (exec.pid, exec.session)).collect();
        execs.sort_by_key(|exec| exec.1.is_some());
        assert_eq!(execs, [(plain.started.pid, None), (named.started.pid, Some("one".to_owned()))]);
    });
}

#[test]
fn samples_come_each_interval_until_cancelled() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let request = Message::Metrics(MetricsRequest { interval_ms: Some(10) });
        let (sender, mut receiver) = link.open(&request).expect("the link is up");
        let mut uptimes = Vec::new();
        while uptimes.len() < 4 {
            let Event::Reply(reply) = receiver.next().await.expect("a sample") else { panic!("no reply") };
            let Reply::Sample(sample) = *reply else { panic!("no sample") };
            uptimes.push(sample.uptime_ms);
        }
        assert!(uptimes.is_sorted() && uptimes[3] > uptimes[0], "{uptimes:?}");
        sender.cancel().expect("it runs");
        let end = loop {
            match receiver.next().await {
                Ok(Event::Reply(_)) => {}
                end => break end,
            }
        };
        assert_eq!(code(end), ErrorCode::Cancelled);
    });
}

#[test]
fn an_interval_that_is_too_short_is_invalid() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for interval_ms in [0, 9] {
            let request = Message::Metrics(MetricsRequest { interval_ms: Some(interval_ms) });
            let (_sender, receiver) = link.open(&request).expect("the link is up");
            assert_eq!(code(receiver.replies().await), ErrorCode::InvalidRequest);
        }
    });
}

#[test]
fn the_agents_log_has_its_last_actions() {
    bounded(async {
        let agent = Agent::listening();
        let mut noisy = agent.raw();
        noisy.write(&[0xff; 4]);
        while noisy.frame_or_end().is_some() {}
        let link = agent.link().await.expect("the agent answers");
        let request = Message::Logs(LogsRequest { source: LogSource::Agent, follow: false });
        let (_sender, mut receiver) = link.open(&request).expect("the link is up");
        let (log, _) = take(&mut receiver).await.expect("a log");
        let log = String::from_utf8(log).expect("text");
        assert!(log.contains("protocol error") && log.ends_with('\n'), "{log:?}");
    });
}

#[test]
fn a_log_that_is_followed_continues_until_cancelled() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let request = Message::Logs(LogsRequest { source: LogSource::Agent, follow: true });
        let (sender, mut receiver) = link.open(&request).expect("the link is up");
        link.ping().await.expect("the link goes on");
        sender.cancel().expect("it runs");
        assert_eq!(code(take(&mut receiver).await), ErrorCode::Cancelled);
    });
}

#[test]
fn the_kernels_log_is_read_or_refused_by_name() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let request = Message::Logs(LogsRequest { source: LogSource::Kernel, follow: false });
        let (_sender, mut receiver) = link.open(&request).expect("the link is up");
        // The host decides who may read its log. The test requires only that the stream ends in order.
        if let Err(error) = take(&mut receiver).await {
            let code = code::<()>(Err(error));
            assert!(matches!(code, ErrorCode::PermissionDenied | ErrorCode::NotFound), "{code:?}");
        }
    });
}
