//! What a broker or a site does not allow is told in one clear sentence, with the exit code a script needs; and how a
//! worker leaves.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    process::Command,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lapin::{
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};
use rustix::process::Signal;
use tests::{
    broker::{self, Broker, wait_until},
    end, prompt_dirs,
    site::{MODEL, Site},
};

const LONG: Duration = Duration::from_secs(120);

/// Both halves at `site`, each of which must end with `code` and say `text`.
fn both_say(site: &Site, code: i32, text: &str, environment: &[(&str, &str)]) {
    let consume = site.consume(&["--exit-when-empty", "--model", MODEL]);
    let enqueue = site.enqueue(&site.prompts(2));
    for mut command in [consume, enqueue] {
        command.env("LENSPOOL_QUEUE_TIMEOUT", "3s").envs(environment.iter().copied());
        let ended = end(command).expect(code).says(text);
        let said = ended.stderr.lines().filter(|line| line.contains("ERROR")).count();
        assert_eq!(said, 1, "{ended:#?}");
        assert!(!ended.stderr.contains("sesame"), "{ended:#?}");
    }
}

/// The rights that README.md says a user needs on the names of a site.
fn rights(site: &Site) -> String {
    format!("^{}\\.", site.namespace)
}

#[test]
fn who_cannot_come_in_is_told_why() {
    let broker = broker::shared();
    both_say(&Site::at(broker.url_as("guest", "sesame", "/"), "password"), 78, "refuses the user", &[]);
    both_say(&Site::at(broker.url_as("guest", "guest", "nowhere"), "vhost"), 78, "no virtual host", &[]);
    both_say(&Site::at("amqp://guest:sesame@127.0.0.1:1".to_owned(), "nobody"), 75, "no broker answers", &[]);
    both_say(&Site::at("http://127.0.0.1:1".to_owned(), "http"), 78, "is no broker address", &[]);

    // Something that is no broker, and something that never says a word.
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address =
        |listener: &TcpListener| format!("amqp://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let (strange, mute) = (address(&stranger), address(&silent));
    thread::spawn(move || {
        for connection in stranger.incoming() {
            let _ = connection.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    both_say(&Site::at(strange, "stranger"), 75, "no broker answers", &[]);
    both_say(&Site::at(mute, "mute"), 75, "no answer within", &[]);
}

#[test]
fn a_password_comes_from_a_file() {
    let broker = broker::shared();
    let site = Site::at(broker.url_as("somebody", "sesame", "/"), "filed");
    let rights = rights(&site);
    broker.add_user("filed", "out-of-a-file", &rights, &rights, &rights);
    let file = site.dir.path().join("password");
    fs::write(&file, "out-of-a-file\n").unwrap();
    let login = [("LENSPOOL_QUEUE_USER", "filed"), ("LENSPOOL_QUEUE_PASSWORD_FILE", file.to_str().unwrap())];
    let mut command = site.enqueue(&site.prompts(2));
    end({
        command.envs(login);
        command
    })
    .expect(0);
    let missing = [("LENSPOOL_QUEUE_PASSWORD_FILE", "/nowhere/password")];
    both_say(&site, 78, "/nowhere/password", &missing);
}

#[test]
fn who_may_not_declare_is_told_and_can_do_without() {
    let broker = broker::shared();
    let mut site = Site::new("undeclared");
    broker.add_user("guest2", "pw", "^$", &rights(&site), &rights(&site));
    let own = site.url.clone();
    site.url = broker.url_as("guest2", "pw", "/");
    both_say(&site, 78, "does not let this user declare", &[]);
    let passive = [("LENSPOOL_QUEUE_PASSIVE", "true")];
    both_say(&site, 78, "does not exist", &passive);

    // What an administrator does, here by way of another user's enqueue.
    let prompts = site.prompts(6);
    let mut command = site.enqueue(&prompts);
    command.env("AMQP_URL", &own);
    end(command).expect(0);
    let mut command = site.consume(&["--exit-when-empty", "--max-idle", "2s", "--model", MODEL]);
    command.envs(passive);
    end(command).expect(0);
    site.url = own;
    site.assert_done(&prompts);
}

#[test]
fn what_topology_prints_is_made_by_an_administrator_and_does_for_users_who_may_not_declare() {
    let broker = broker::shared();
    let mut site = Site::new("topology");
    broker.add_user("user", "pw", "^$", &rights(&site), &rights(&site));
    let (own, args) = (site.url.clone(), ["topology", "--model", MODEL]);
    let printed = end(site.dispatcher(&[&args[..], &["--json"]].concat())).expect(0);
    let list = end(site.dispatcher(&args)).expect(0).stdout;
    let names = ["exchanges", "queues"].map(|key| printed.json()[key].as_array().unwrap().clone()).concat();
    for made in &names {
        assert!(list.contains(&format!(" {}: ", made["name"].as_str().unwrap())), "{made} is not in {list}");
    }
    assert_eq!(list.lines().count(), names.len(), "{list}");
    let file = site.dir.path().join("lenspool.json");
    fs::write(&file, &printed.stdout).unwrap();
    broker.rabbitmqctl(&["import_definitions", file.to_str().unwrap()]).expect(0);

    site.url = broker.url_as("user", "pw", "/");
    let passive = [("LENSPOOL_QUEUE_PASSIVE", "true")];
    let prompts = site.prompts(12);
    let mut enqueue = site.enqueue(&prompts);
    // A job that fails goes where it should, too: its data directory is away for the first try.
    let (save, moved) = (site.save_path(), site.dir.path().join("moved"));
    let mut first = site.consume(&["--exit-when-empty", "--max-idle", "500ms", "--model", MODEL]);
    let mut second = site.consume(&["--exit-when-empty", "--max-idle", "3s", "--model", MODEL]);
    for command in [&mut enqueue, &mut first, &mut second] {
        command.envs(passive);
    }
    end(enqueue).expect(0);
    fs::rename(&save, &moved).unwrap();
    end(first).expect(0).says("does not see the data directory");
    fs::rename(&moved, &save).unwrap();
    assert_eq!(end(second).expect(0).json()["done"], 12);
    let status = end(site.dispatcher(&["status", "--json"])).expect(0).json();
    assert_eq!((&status["runs"][0]["state"], &status["runs"][0]["committed"]), (&"done".into(), &12.into()));
    end(site.dispatcher(&["dead", "list"])).expect(0);
    // Whoever may declare finds nothing to object to.
    site.url = own;
    assert_eq!(end(site.enqueue(&prompts)).expect(0).json()["models"][0]["cached"], 12);
    site.assert_done(&prompts);
}

#[test]
fn a_queue_with_other_arguments_is_named_with_the_argument() {
    let site = Site::new("other");
    let queue = format!("{}.dead", site.namespace);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let connection = broker::connect(&site.url).await;
        let channel = connection.create_channel().await.unwrap();
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue.as_str().into(), options, arguments).await.unwrap();
    });
    both_say(&site, 78, "x-queue-type", &[]);
}

#[test]
fn tls_with_a_private_authority() {
    let broker = Broker::builder().tls().start();
    let site = Site::at(broker.tls_url(), "tls");
    let prompts = site.prompts(4);
    both_say(&site, 78, "queue.ca_file", &[]);
    let ca = [("LENSPOOL_QUEUE_CA_FILE", broker.ca_file().to_str().unwrap())];
    let mut enqueue = site.enqueue(&prompts);
    let mut consume = site.consume(&["--exit-when-empty", "--max-idle", "2s"]);
    for command in [&mut enqueue, &mut consume] {
        command.envs(ca);
    }
    end(enqueue).expect(0);
    end(consume).expect(0);
    let plain = Site { url: broker.url(), ..site };
    plain.assert_done(&prompts);
}

/// A run big enough that a worker is still at work when it is told to leave.
fn at_work(name: &str, flags: &[&str]) -> (Site, std::path::PathBuf, tests::site::Running) {
    const PROMPTS: usize = 2000;
    let site = Site::new(name);
    let prompts = site.prompts(PROMPTS);
    site.enqueued(&prompts);
    let worker = site.worker(flags);
    wait_until("work to be under way", LONG, || match prompt_dirs(&site.save_path(), MODEL).len() {
        0..10 => Err("nothing yet".to_owned()),
        _ => Ok(()),
    });
    (site, prompts, worker)
}

#[test]
fn a_worker_told_to_leave_hands_back_what_it_has_not_begun() {
    let (site, prompts, worker) = at_work("leave", &[]);
    worker.signal(Signal::TERM);
    let left = worker.end_within(LONG).expect(0).says("a second signal stops now").json();
    let over = left["jobs"].as_u64().unwrap();
    assert!(left["lost"] == 0 && left["failed"] == 0, "{left:#}");
    assert_eq!(u64::from(site.ready()), 2000 / 8 - over, "what was not done is ready again at once");
    site.drain();
    site.assert_done(&prompts);
}

#[test]
fn a_second_signal_is_obeyed_at_once_and_no_grace_hands_back_at_once() {
    let (site, _, worker) = at_work("second", &[]);
    // Stopped for a moment, so that both signals are there when it goes on.
    worker.signal(Signal::TERM);
    worker.signal(Signal::INT);
    let code = worker.end_within(LONG).code;
    assert!(code == Some(130) || code == Some(0), "{code:?}");
    let worker = site.worker(&["--grace", "0s"]);
    thread::sleep(Duration::from_millis(1500));
    worker.signal(Signal::TERM);
    let left = worker.end_within(LONG).expect(0).json();
    assert_eq!(left["failed"], 0, "{left:#}");
}

#[test]
fn a_worker_leaves_when_its_time_is_up() {
    let (_site, _, worker) = at_work("runtime", &["--max-runtime", "2s"]);
    worker.end_within(LONG).expect(0).says("the time is up");

    let site = Site::new("slurm");
    site.enqueued(&site.prompts(8));
    let end_of_job = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 60;
    let mut command: Command = site.consume(&["--grace", "25s"]);
    command.env("SLURM_JOB_END_TIME", end_of_job.to_string());
    let ended = end(command).expect(0).says("the time is up");
    assert_eq!(ended.json()["done"], 8);
}
