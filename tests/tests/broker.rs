//! The brokers that other stories rely on: that they are real, that they break as asked, that nothing of them stays.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use lapin::{
    Channel, Confirmation, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        QueueDeclareOptions,
    },
    tcp::OwnedTLSConfig,
    types::{AMQPValue, FieldTable},
};
use tests::broker::{
    self, Broker, Cluster, connect, drain, namespace, publish_raw, queue_counts, wait_until,
};
use tokio::time::timeout;

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

async fn confirming(url: &str) -> (Connection, Channel) {
    let (connection, channel) = channel(url).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    (connection, channel)
}

async fn publish(channel: &Channel, queue: &str, body: &[u8]) -> lapin::PublisherConfirm {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let persistent = lapin::BasicProperties::default().with_delivery_mode(2);
    channel.basic_publish("".into(), queue.into(), options, body, persistent).await.unwrap()
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

#[test]
fn nothing_is_left_of_a_test_process_that_was_killed() {
    let mut tests = Command::new(env::current_exe().unwrap())
        .args(["--exact", "hold_a_broker", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(tests.stdout.take().unwrap()).lines();
    let dir =
        lines.map(Result::unwrap).find_map(|line| Some(PathBuf::from(line.split_once("holds ")?.1))).unwrap();
    assert!(!processes_of(&dir).is_empty());
    tests.kill().unwrap();
    tests.wait().unwrap();
    wait_until("the broker to go", SOON, || match (processes_of(&dir), dir.exists()) {
        (processes, false) if processes.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
#[ignore = "runs until it is killed, by nothing_is_left_of_a_test_process_that_was_killed"]
fn hold_a_broker() {
    println!("holds {}", broker::shared().dir().display());
    sleep(Duration::from_secs(600));
}

#[test]
fn users_hosts_and_the_management_api_are_as_asked() {
    let broker = Broker::builder().management().start();
    broker.add_user("reader", "p", "", "", ".*");
    broker.add_vhost("lab");
    quorum_queue(&broker.url(), "jobs");
    quorum_queue(&broker.url_as("guest", "guest", "lab"), "jobs");
    let reader = broker.url_as("reader", "p", "/");
    assert_eq!(queue_counts(&reader, "jobs"), Some((0, 0)));
    let refused = catch_unwind(|| quorum_queue(&reader, "more")).unwrap_err();
    let refused = refused.downcast_ref::<String>().unwrap();
    assert!(refused.contains("ACCESS_REFUSED"), "{refused}");

    let url = broker.management_url();
    let address = url.strip_prefix("http://guest:guest@").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let guest = "Authorization: Basic Z3Vlc3Q6Z3Vlc3Q=";
    write!(stream, "GET /api/queues/lab HTTP/1.0\r\n{guest}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(r#""name":"jobs""#), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_alarm_blocks_publishers_until_it_ends() {
    let broker = Broker::start();
    let (_connection, channel) = confirming(&broker.url()).await;
    declare(&channel, "jobs", "quorum").await;
    assert_eq!(publish(&channel, "jobs", b"before").await.await.unwrap(), Confirmation::Ack(None));
    broker.memory_alarm(true);
    let mut blocked = Box::pin(publish(&channel, "jobs", b"during").await);
    assert!(timeout(Duration::from_secs(3), &mut blocked).await.is_err(), "confirmed during the alarm");
    broker.memory_alarm(false);
    let confirmed = timeout(SOON, blocked).await.expect("confirmed after the alarm").unwrap();
    assert_eq!(confirmed, Confirmation::Ack(None));
    assert_eq!(queue_counts(&broker.url(), "jobs"), Some((2, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_ack_closes_the_channel() {
    let broker = Broker::builder().ack_timeout(Duration::from_secs(10)).start();
    let (_connection, channel) = channel(&broker.url()).await;
    declare(&channel, "jobs", "quorum").await;
    publish_raw(&broker.url(), "", "jobs", b"a long job", FieldTable::default());
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume("jobs".into(), "slow".into(), options, FieldTable::default()).await.unwrap();
    let delivery = consumer.next().await.unwrap().unwrap();
    let delivered = Instant::now();
    let error = timeout(SOON, consumer.next()).await.expect("the channel closed").unwrap().unwrap_err();
    let after = delivered.elapsed();
    assert!(error.to_string().contains("PRECONDITION-FAILED"), "{error}");
    assert!(after >= Duration::from_secs(9), "after {after:?}");
    assert!(!matches!(delivery.ack(BasicAckOptions::default()).await, Ok(true)), "the ack came too late");
    assert_eq!(queue_counts(&broker.url(), "jobs"), Some((1, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_knows_the_private_ca_connects_over_tls_and_no_other() {
    let broker = Broker::builder().tls().start();
    let over_tls = async |cert_chain| {
        let config = OwnedTLSConfig { identity: None, cert_chain };
        let runtime = lapin::runtime::default_runtime().unwrap();
        let properties = ConnectionProperties::default();
        Connection::connect_with_config(&broker.tls_url(), properties, config, runtime).await
    };
    over_tls(Some(fs::read_to_string(broker.ca_file()).unwrap())).await.unwrap();
    let error = over_tls(None).await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_a_leader_keeps_what_was_confirmed() {
    let cluster = Cluster::start(3);
    let urls = cluster.urls();
    {
        let (_connection, channel) = confirming(&urls[0]).await;
        declare(&channel, "jobs", "quorum").await;
        assert_eq!(publish(&channel, "jobs", b"a job").await.await.unwrap(), Confirmation::Ack(None));
    }
    let first = cluster.leader_of("jobs");
    cluster.kill_node(first);
    let second = cluster.leader_of("jobs");
    assert_ne!(first, second);
    publish_raw(&urls[second], "", "jobs", b"another", FieldTable::default());
    cluster.restart_node(first);
    let bodies: Vec<_> = drain(&urls[first], "jobs").into_iter().map(|message| message.body).collect();
    assert_eq!(bodies, [b"a job".to_vec(), b"another".to_vec()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_from_its_beginning() {
    const MESSAGES: u32 = 200;
    let url = broker::shared().url();
    let stream = namespace("stream");
    let (_connection, channel) = confirming(&url).await;
    declare(&channel, &stream, "stream").await;
    for i in 0..MESSAGES {
        let confirmation = publish(&channel, &stream, i.to_string().as_bytes()).await.await.unwrap();
        assert_eq!(confirmation, Confirmation::Ack(None));
    }
    // 3.10 counts a stream's messages every five seconds.
    wait_until("the stream to count its messages", SOON, || match queue_counts(&url, &stream) {
        Some((MESSAGES, 0)) => Ok(()),
        other => Err(format!("{other:?}")),
    });

    channel.basic_qos(50, BasicQosOptions::default()).await.unwrap(); // A stream refuses consumers without.
    let first = arguments(&[("x-stream-offset", text("first"))]);
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume((&*stream).into(), "reader".into(), options, first).await.unwrap();
    for i in 0..MESSAGES {
        let delivery = timeout(SOON, consumer.next()).await.expect("all are delivered").unwrap().unwrap();
        assert_eq!(delivery.data, i.to_string().as_bytes());
        delivery.ack(BasicAckOptions::default()).await.unwrap();
    }
}
