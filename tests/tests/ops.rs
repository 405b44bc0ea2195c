//! What operators do, with a real broker: look, send dead letters again, call off, verify and mend, index.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use common::{
    job::{Failure, FailureKind, RunId},
    model::reference::ModelName,
    queue::rabbitmq::{Envelope, Try, message},
    store::{Event, Journal, SaveLayout, Store},
};
use lapin::{options::BasicConsumeOptions, types::FieldTable};
use serde_json::Value;
use tests::{
    Ended,
    broker::{self, drain, publish_raw},
    check_committed, end, prompt_dirs,
    site::{MODEL, Site},
};

fn dispatcher(site: &Site, args: &[&str]) -> Ended {
    end(site.dispatcher(args))
}

/// The jobs of a site, moved to the dead letters with `reason`, as a worker would.
fn kill_jobs(site: &Site, reasons: &[&str]) -> Vec<String> {
    let mut ids = Vec::new();
    for (message, reason) in drain(&site.url, &site.queue()).into_iter().zip(reasons) {
        let job = message::parse(&message.body).unwrap();
        let failure = Failure { hash: None, kind: FailureKind::Permanent, reason: (*reason).to_owned() };
        let envelope = Envelope::of(&job).tried(Try::now(&failure));
        let headers = envelope.properties().headers().clone().unwrap();
        publish_dead(site, &message.body, headers);
        ids.push(job.id.0);
    }
    ids
}

fn publish_dead(site: &Site, body: &[u8], headers: FieldTable) {
    publish_raw(&site.url, &format!("{}.dlx", site.namespace), "dead", body, headers);
}

fn jobs(list: &Value) -> BTreeSet<String> {
    let letters = list.as_array().unwrap();
    letters.iter().map(|letter| letter["job"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn dead_letters_are_listed_shown_sent_again_and_removed() {
    let mut site = Site::new("dead");
    site.batch_size = 4;
    site.enqueued(&site.prompts(12));
    let ids = kill_jobs(&site, &["prompt 7 is too long", "prompt 12 is too long", "disk full"]);
    assert_eq!((ids.len(), site.ready(), site.dead()), (3, 0, 3));
    publish_dead(&site, b"no job at all", FieldTable::default());

    let list = dispatcher(&site, &["dead", "list", "--json"]).expect(0).json();
    assert_eq!(list.as_array().unwrap().len(), 4);
    let text = dispatcher(&site, &["dead", "list"]).expect(0).stdout;
    assert!(text.starts_with("4 dead letters\n      2  prompt N is too long\n"), "{text}");
    let long = dispatcher(&site, &["dead", "list", "--json", "--reason", "TOO long"]).expect(0).json();
    assert_eq!(jobs(&long), ids[..2].iter().cloned().collect());
    let none = dispatcher(&site, &["dead", "list", "--json", "--reason", "too long", "--run", "other"]);
    assert_eq!(none.expect(0).json(), Value::Array(Vec::new()));
    let show = dispatcher(&site, &["dead", "show", "--json", "--job", &ids[2]]).expect(0).json();
    assert_eq!(show[0]["history"][0]["reason"], "disk full", "{show:#}");
    assert_eq!(show[0]["contents"].as_array().unwrap().len(), 4);
    assert_eq!(site.dead(), 4, "looking changes nothing");

    let sent = dispatcher(&site, &["dead", "requeue", "--reason", "too long"]).expect(0);
    assert!(sent.stdout.starts_with("2 jobs of 8 prompts sent again"), "{sent:#?}");
    assert_eq!((site.ready(), site.dead()), (2, 2));
    // What is no job stays dead, and the rest goes on.
    dispatcher(&site, &["dead", "requeue"]).expect(65).says("stays dead: the message is no job");
    assert_eq!((site.ready(), site.dead()), (3, 1));
    dispatcher(&site, &["dead", "purge"]).expect(78).says("--all");
    dispatcher(&site, &["dead", "purge", "--all"]).expect(0);
    assert_eq!(site.dead(), 0);
    let done = site.drain();
    assert_eq!(done["done"], 12, "what was sent again is computed: {done:#}");
}

#[test]
fn a_letter_that_lies_there_twice_is_one() {
    let site = Site::new("twice");
    site.enqueued(&site.prompts(8));
    let body = drain(&site.url, &site.queue()).remove(0).body;
    let headers = Envelope::of(&message::parse(&body).unwrap()).properties();
    for _ in 0..2 {
        // The id travels in a property that a raw publish does not set: the body knows it, too.
        publish_dead(&site, &body, headers.headers().clone().unwrap());
    }
    let list = dispatcher(&site, &["dead", "list", "--json"]).expect(0).json();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["copies"]), (1, &2.into()), "{list:#}");
    let sent = dispatcher(&site, &["dead", "requeue"]).expect(0);
    assert_eq!(sent.stdout, "1 job of 8 prompts sent again (with a further copy)\n");
}

#[test]
fn status_tells_queues_letters_and_runs_and_watch_ends_with_them() {
    let mut site = Site::new("status");
    site.batch_size = 5;
    let summary = site.enqueued(&site.prompts(20));
    let run = summary["run"].as_str().unwrap();
    let status = |args: &[&str]| dispatcher(&site, &[&["status", "--json"], args].concat()).expect(0).json();
    let before = status(&[]);
    assert_eq!((&before["queues"][0]["model"], &before["queues"][0]["ready"]), (&MODEL.into(), &4.into()));
    let row = &before["runs"][0];
    assert_eq!((&row["run"], &row["state"]), (&run.into(), &"running".into()), "{before:#}");
    assert_eq!((&row["todo"], &row["committed"], &row["pending"]), (&20.into(), &0.into(), &20.into()));
    assert_eq!(row["eta_seconds"], Value::Null);
    assert!(row["note"].as_str().unwrap().contains("worker consume"));

    let watch = site.dispatcher(&["watch", "--every", "200ms"]);
    let watching = std::thread::spawn(move || end(watch));
    site.drain();
    let watched = watching.join().unwrap().expect(0);
    let last = watched.stdout.lines().last().unwrap();
    assert!(last.contains("done: 20 of 20 prompts, 0 failed"), "{watched:#?}");

    let after = status(&["--run", run]);
    let row = &after["runs"][0];
    assert_eq!((&row["state"], &row["committed"], &row["failed"]), (&"done".into(), &20.into(), &0.into()));
    assert_eq!((&after["queues"][0]["ready"], &after["dead"]["total"]), (&0.into(), &0.into()));
    let text = dispatcher(&site, &["status"]).expect(0).stdout;
    assert!(text.contains("RUN") && text.contains(run) && text.contains("no dead letters"), "{text}");

    // Without the broker the files still say it.
    let mut alone = site.dispatcher(&["status", "--json", "--amqp", "amqp://127.0.0.1:1", "--save-path"]);
    alone.arg(site.save_path());
    let alone = end(alone).expect(0).says("from files alone").json();
    assert_eq!((&alone["runs"][0]["state"], &alone["broker"]["reachable"]), (&"done".into(), &false.into()));
}

#[test]
fn a_job_that_is_tried_again_is_not_over_while_a_worker_holds_it() {
    let site = Site::new("held");
    let run = RunId(site.enqueued(&site.prompts(5))["run"].as_str().unwrap().to_owned());
    // A try failed, as its worker's journal says, and another worker has the job in hand now.
    let body = drain(&site.url, &site.queue()).remove(0).body;
    let job = message::parse(&body).unwrap();
    let (save, name) = (site.save_path(), ModelName::try_from(MODEL).unwrap());
    let journal = Journal::new(&Store::new(&save, &run), &SaveLayout::new(&save).model(&name), &run);
    for prompt in &job.prompts {
        let reason = "the file system is full".to_owned();
        let failure = Failure { hash: Some(prompt.hash.clone()), kind: FailureKind::Retryable, reason };
        journal.note(Event::Failed { job: job.id.clone(), failure, last: false }).unwrap();
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let held = runtime.block_on(async {
        let connection = broker::connect(&site.url).await;
        let channel = connection.create_channel().await.unwrap();
        let options = BasicConsumeOptions::default();
        let queue = site.queue();
        let consumer =
            channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
        (consumer.await.unwrap(), channel, connection)
    });
    publish_raw(&site.url, &format!("{}.jobs", site.namespace), MODEL, &body, FieldTable::default());
    let mut watch = site.dispatcher(&["watch", "--every", "100ms"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let ended = watch.try_wait().unwrap();
    assert_eq!((ended, site.ready()), (None, 0), "the job is in hand");
    drop(held);
    runtime.shutdown_background();
    site.drain();
    let ended: Ended = watch.wait_with_output().unwrap().into();
    assert!(ended.expect(0).stdout.ends_with("done: 5 of 5 prompts, 0 failed\n"));
}

#[test]
fn ctrl_c_ends_watching() {
    let site = Site::new("ctrlc");
    site.enqueued(&site.prompts(8));
    let mut watch = site.dispatcher(&["watch", "--every", "100ms"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(watch.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("running: 0 of 8 prompts"), "{line}");
    rustix::process::kill_process(rustix::process::Pid::from_child(&watch), rustix::process::Signal::INT)
        .unwrap();
    assert_eq!(watch.wait().unwrap().code(), Some(130));
}

#[test]
fn dead_letters_show_in_status_and_in_how_watch_ends() {
    let mut site = Site::new("deadstatus");
    site.batch_size = 10;
    site.enqueued(&site.prompts(20));
    // One job is given up by the broker, say: no journal knows of it.
    let mut messages = drain(&site.url, &site.queue());
    let dead = messages.remove(0);
    publish_raw(
        &site.url,
        &format!("{}.jobs", site.namespace),
        MODEL,
        &messages[0].body,
        FieldTable::default(),
    );
    publish_dead(&site, &dead.body, FieldTable::default());
    site.drain();
    let status = dispatcher(&site, &["status", "--json"]).expect(0).json();
    let row = &status["runs"][0];
    assert_eq!((&row["state"], &row["committed"], &row["failed"]), (&"done".into(), &10.into(), &10.into()));
    assert_eq!((&status["dead"]["total"], &status["dead"]["by"][0]["prompts"]), (&1.into(), &10.into()));
    dispatcher(&site, &["watch", "--every", "100ms"]).expect(65);
}

#[test]
fn unacknowledged_jobs_are_told_where_the_management_api_is() {
    let own = broker::Broker::builder().management().start();
    let site = Site::at(own.url(), "unacked");
    site.enqueued(&site.prompts(8));
    let mut command = site.dispatcher(&["status", "--json"]);
    command.env("LENSPOOL_QUEUE_MANAGEMENT", own.management_url());
    let status = end(command).expect(0).json();
    assert!(
        status["queues"][0]["unacked"].is_u64() || status["queues"][0]["unacked"].is_null(),
        "{status:#}"
    );
    let mut command = site.dispatcher(&["status", "--json"]);
    command.env("LENSPOOL_QUEUE_MANAGEMENT", "http://guest:sesame@127.0.0.1:1");
    let warned = end(command).expect(0).says("does not answer");
    assert!(!warned.stderr.contains("sesame") && !warned.stdout.contains("sesame"), "{warned:#?}");
}

#[test]
fn a_run_that_is_called_off_is_dropped_by_workers() {
    let site = Site::new("cancel");
    let run = site.enqueued(&site.prompts(40))["run"].as_str().unwrap().to_owned();
    dispatcher(&site, &["cancel", "nothing"]).expect(78).says(&run);
    let told = dispatcher(&site, &["cancel", &run]).expect(0);
    assert!(told.stdout.contains("0 of 40 prompts are committed"), "{told:#?}");
    let done = site.drain();
    assert_eq!((&done["done"], site.ready(), site.dead()), (&0.into(), 0, 0), "{done:#}");
    let status = dispatcher(&site, &["status", "--json"]).expect(0).json();
    assert_eq!(status["runs"][0]["state"], "cancelled");
    dispatcher(&site, &["watch"]).expect(0);
}

#[test]
fn what_is_broken_is_found_removed_and_computed_again() {
    let site = Site::new("verify");
    let prompts = site.prompts(12);
    let run = site.enqueued(&prompts)["run"].as_str().unwrap().to_owned();
    site.drain();
    let save = site.save_path();
    let verify = |args: &[&str]| dispatcher(&site, &[&["verify", "--json"], args].concat());
    assert_eq!(verify(&[&run]).expect(0).json()["prompts"], 12);
    assert_eq!(verify(&["--save-path", save.to_str().unwrap()]).expect(0).json()["prompts"], 12);

    let dirs: Vec<_> = prompt_dirs(&save, MODEL).into_values().collect();
    let mut bytes = fs::read(dirs[0].join("activations.npz")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(dirs[0].join("activations.npz"), bytes).unwrap();
    fs::write(dirs[1].join("prompt.json"), "{").unwrap();
    fs::remove_file(dirs[2].join("prompt.json")).unwrap();
    fs::remove_file(dirs[3].join("activations.npz")).unwrap();
    let broken = verify(&[&run]).expect(65).json();
    let hashes = |report: &Value| -> BTreeSet<String> {
        let broken = report["broken"].as_array().unwrap();
        broken.iter().map(|broken| broken["hash"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(hashes(&broken).len(), 4, "{broken:#}");

    let repaired = verify(&[&run, "--repair"]).expect(0).json();
    assert_eq!((&repaired["repaired"]["prompts"], &repaired["repaired"]["left"]), (&4.into(), &0.into()));
    assert_eq!(site.ready(), 1, "four prompts are one job");
    assert!(!dirs[0].join("prompt.json").exists() && !dirs[0].join("activations.npz").exists());
    assert!(!save.join(".lenspool").join(MODEL).join("repair").read_dir().unwrap().any(|_| true));
    let done = site.drain();
    assert_eq!(done["done"], 4, "{done:#}");
    assert_eq!(check_committed(&save, MODEL), Ok(12));
    verify(&[&run]).expect(0);
    let single = site.single_process(&prompts);
    for (hash, dir) in prompt_dirs(&single, MODEL) {
        for file in ["prompt.json", "activations.npz"] {
            let again = save.join(MODEL).join("prompts").join(&hash).join(file);
            assert!(fs::read(dir.join(file)).unwrap() == fs::read(again).unwrap(), "{hash}/{file} differs");
        }
    }
}

#[test]
fn a_repair_that_is_killed_loses_nothing_and_the_next_one_goes_on() {
    let mut site = Site::new("repair-killed");
    site.batch_size = 1;
    let prompts = site.prompts(12);
    let run = site.enqueued(&prompts)["run"].as_str().unwrap().to_owned();
    let (jobs, exchange) = (drain(&site.url, &site.queue()), format!("{}.jobs", site.namespace));
    for message in &jobs {
        publish_raw(&site.url, &exchange, MODEL, &message.body, FieldTable::default());
    }
    site.drain();
    let save = site.save_path();
    for dir in prompt_dirs(&save, MODEL).values() {
        fs::write(dir.join("activations.npz"), "torn by somebody else").unwrap();
    }
    // The texts must come from the repair's own copy.
    fs::remove_file(save.join(MODEL).join("prompts.jsonl")).unwrap();
    // A queue that is full, with the last jobs of the run: what is removed is not published.
    for message in &jobs[9..] {
        publish_raw(&site.url, &exchange, MODEL, &message.body, FieldTable::default());
    }
    let (broker, full) = (broker::shared(), format!("full-{}", site.namespace));
    let pattern = format!("^{}[.]jobs[.]", site.namespace);
    broker.rabbitmqctl(&["set_policy", &full, &pattern, r#"{"max-length":2}"#]).expect(0);
    let mut command = site.dispatcher(&["verify", &run, "--repair"]);
    let mut repair = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(repair.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.contains("refused")), "it came to its end");
    repair.kill().unwrap();
    repair.wait().unwrap();
    broker.rabbitmqctl(&["clear_policy", &full]).expect(0);
    let copies = || fs::read_dir(save.join(".lenspool").join(MODEL).join("repair")).unwrap().count();
    assert_eq!(copies(), 1);
    assert!(prompt_dirs(&save, MODEL).values().any(|dir| !dir.join("prompt.json").exists()));
    let status = dispatcher(&site, &["status"]).expect(0).stdout;
    assert!(status.contains("interrupted; `dispatcher verify --repair` goes on"), "{status}");

    // What was not removed looks committed to a worker, so nothing is computed and what was removed is owed.
    assert_eq!(site.drain()["done"], 0);
    let directory = ["verify", "--json", "--save-path", save.to_str().unwrap()];
    let broken = dispatcher(&site, &directory).expect(65).says("was interrupted").json();
    assert!(broken["broken"].to_string().contains("a repair that was interrupted removed it"), "{broken:#}");
    let repaired = dispatcher(&site, &[&directory[..], &["--repair"]].concat()).expect(0).json();
    let told = &repaired["repaired"];
    assert_eq!((&told["prompts"], &told["left"], copies()), (&12.into(), &0.into(), 0), "{repaired:#}");
    assert_eq!(site.drain()["done"], 12);
    assert_eq!(dispatcher(&site, &directory).expect(0).json()["prompts"], 12);
    dispatcher(&site, &["index"]).expect(0);
    site.assert_done(&prompts);
    // Nothing is left of the first repair: no run waits for somebody to go on with it.
    let status = dispatcher(&site, &["status"]).expect(0).stdout;
    assert!(!status.contains("interrupted"), "{status}");
}

#[test]
fn an_index_that_is_lost_is_built_again() {
    let site = Site::new("index");
    let run = site.enqueued(&site.prompts(15))["run"].as_str().unwrap().to_owned();
    site.drain();
    let index = site.save_path().join(MODEL).join("prompts.jsonl");
    let before = fs::read(&index).unwrap();
    for args in [&["index", "--run", &run][..], &["index"]] {
        fs::remove_file(&index).unwrap();
        let told = dispatcher(&site, args).expect(0);
        assert!(told.stdout.contains("15 prompts listed"), "{told:#?}");
        assert!(fs::read(&index).unwrap() == before, "{args:?}");
    }
}

#[test]
fn no_broker_is_told_in_one_sentence() {
    let site = Site::at("amqp://127.0.0.1:1".to_owned(), "none");
    for args in [&["status"][..], &["dead", "list"], &["cancel", "r"], &["verify"], &["index"], &["watch"]] {
        let ended = dispatcher(&site, args).expect(75).says("no broker answers at");
        assert_eq!(ended.stdout, "", "{args:?}");
    }
}
