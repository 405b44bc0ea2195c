//! The brokers that other stories rely on: that they are real, that they break as asked, that nothing of them stays.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use lapin::{
    Channel, Connection,
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};
use tests::broker::{self, Broker, connect, drain, namespace, publish_raw, queue_counts, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// Arguments of a queue; numbers and texts.
fn arguments(pairs: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in pairs {
        table.insert((*key).into(), value.clone());
    }
    table
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

async fn declare(channel: &Channel, queue: &str, kind: &str) {
    let kind = arguments(&[("x-queue-type", text(kind))]);
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), kind).await.unwrap();
}

async fn channel(url: &str) -> (Connection, Channel) {
    let connection = connect(url).await;
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// A durable quorum queue, from sync code.
fn quorum_queue(url: &str, queue: &str) {
    let declared = async {
        let (connection, channel) = channel(url).await;
        declare(&channel, queue, "quorum").await;
        connection.close(200, "done".into()).await.unwrap();
    };
    tokio::runtime::Runtime::new().unwrap().block_on(declared);
}

/// Ids of the processes that belong to a broker's folder.
fn processes_of(dir: &Path) -> Vec<String> {
    let mark = format!("LENSPOOL_TEST_SANDBOX={}", dir.display());
    let belongs = |process: &PathBuf| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    processes.filter(belongs).map(|process| process.display().to_string()).collect()
}

#[test]
fn what_a_broker_confirmed_is_there_after_a_kill() {
    let broker = Broker::start();
    quorum_queue(&broker.url(), "jobs");
    publish_raw(&broker.url(), "", "jobs", b"a job", arguments(&[("attempt", AMQPValue::LongInt(3))]));
    sleep(broker::QUEUE_ON_DISK);
    broker.kill();
    broker.restart();
    wait_until("the queue to be back", SOON, || match queue_counts(&broker.url(), "jobs") {
        Some((1, 0)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let messages = drain(&broker.url(), "jobs");
    assert_eq!(messages.len(), 1);
    assert_eq!((&*messages[0].routing_key, &*messages[0].body), ("jobs", &b"a job"[..]));
    assert_eq!(messages[0].headers["attempt"], 3);
    broker.stop();
    broker.restart();
    assert_eq!(queue_counts(&broker.url(), "jobs"), Some((0, 0)));
    assert_eq!(queue_counts(&broker.url(), "no such queue"), None);
}

#[test]
fn nothing_is_left_of_a_broker_whose_test_fails() {
    let mut dir = PathBuf::new();
    let mut before = 0;
    let failed = catch_unwind(AssertUnwindSafe(|| {
        let broker = Broker::start();
        dir = broker.dir().to_owned();
        before = processes_of(&dir).len();
        panic!("the test failed");
    }));
    assert!(failed.is_err());
    assert!(before >= 3, "{before} processes: at least epmd, the script and the broker were expected");
    assert_eq!(processes_of(&dir), Vec::<String>::new());
    assert!(!dir.exists(), "{} is still there", dir.display());
}

#[test]
fn a_broker_that_cannot_start_says_why() {
    let broker = Broker::start();
    broker.stop();
    fs::write(broker.dir().join("rabbit/rabbitmq.conf"), "no.such.key = 1").unwrap();
    let failed = catch_unwind(AssertUnwindSafe(|| broker.restart())).unwrap_err();
    let said = failed.downcast_ref::<String>().unwrap();
    assert!(said.contains("ended at its start") && said.contains("no.such.key"), "{said}");
}

#[test]
fn namespaces_keep_tests_apart_at_the_shared_broker() {
    let url = broker::shared().url();
    let queues = [namespace("apart"), namespace("apart")];
    for (count, queue) in queues.iter().enumerate() {
        quorum_queue(&url, queue);
        (0..count).for_each(|_| publish_raw(&url, "", queue, b"", FieldTable::default()));
    }
    assert_eq!(queues.map(|queue| queue_counts(&url, &queue).unwrap().0), [0, 1]);
}
