//! What breaks, and what must hold all the same: every prompt once, whole, equal to the single process; and with the
//! dead letters exactly what belongs there.
//!
//! `LENSPOOL_LONG=1 tests/run killed` kills at least 200 workers instead of a dozen.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lapin::types::FieldTable;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{
    broker::{self, Broker, Cluster, QUEUE_ON_DISK, publish_raw, wait_until},
    check_committed, end, prompt_dirs,
    site::{MODEL, Running, Site, UNTIL_EMPTY},
};

/// Long enough for anything on a busy machine.
const LONG: Duration = Duration::from_secs(180);

fn committed(site: &Site) -> usize {
    prompt_dirs(&site.save_path(), MODEL).values().filter(|dir| dir.join("prompt.json").exists()).count()
}

/// Waits until a worker has done something and has more to do.
fn wait_for_work_in_hand(site: &Site, prompts: usize) {
    wait_until("work to be under way", LONG, || match committed(site) {
        0 => Err("nothing is committed".to_owned()),
        done => {
            assert!(done < prompts, "all was done before anything could break");
            Ok(())
        }
    });
}

/// Waits until every prompt is committed.
fn wait_for_all(site: &Site, prompts: usize) {
    wait_until("every prompt to be committed", LONG, || match committed(site) {
        done if done == prompts => Ok(()),
        done => Err(format!("{done} of {prompts}")),
    });
}

/// Kills workers of a fresh run at random moments, and returns how many.
fn kill_workers(seed: u64) -> usize {
    const PROMPTS: usize = 400;
    const KILLS: usize = 12;
    let mut random = StdRng::seed_from_u64(seed);
    let mut site = Site::new("kills");
    site.batch_size = 4;
    let prompts = site.prompts(PROMPTS);
    site.enqueued(&prompts);
    let mut start = |site: &Site| {
        let life = Duration::from_millis(random.random_range(200..1800));
        (site.worker(&[]), Instant::now() + life)
    };
    let mut workers: Vec<(Running, Instant)> = (0..3).map(|_| start(&site)).collect();
    let mut kills = 0;
    while kills < KILLS && committed(&site) < PROMPTS {
        workers.sort_by_key(|(_, end)| std::cmp::Reverse(*end));
        let (worker, end) = workers.pop().expect("there are three");
        thread::sleep(end.saturating_duration_since(Instant::now()));
        worker.kill();
        kills += 1;
        workers.push(start(&site));
    }
    drop(workers);
    site.drain();
    // Sweeps what the dead left where no job led a worker any more.
    site.enqueued(&prompts);
    assert_eq!(site.dead(), 0, "seed {seed}");
    site.assert_done(&prompts);
    kills
}

#[test]
fn workers_killed_at_random_moments_lose_nothing() {
    let wanted = if std::env::var_os("LENSPOOL_LONG").is_some() { 200 } else { 12 };
    let mut seed = std::env::var("LENSPOOL_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    let mut kills = 0;
    while kills < wanted {
        println!("seed {seed}");
        kills += kill_workers(seed).max(1);
        seed = seed.wrapping_add(1);
    }
    println!("{kills} workers were killed");
}

#[test]
fn a_broker_that_goes_away_and_comes_back_interrupts_and_loses_nothing() {
    const PROMPTS: usize = 1500;
    let broker = Broker::start();
    let site = Site::at(broker.url(), "restart");
    let prompts = site.prompts(PROMPTS);
    site.enqueued(&prompts);
    thread::sleep(QUEUE_ON_DISK);
    let worker = site.worker(&[]);
    wait_for_work_in_hand(&site, PROMPTS);
    broker.kill();
    broker.restart();
    let before = committed(&site);
    wait_until("the worker to come back", LONG, || match committed(&site) {
        done if done > before || done == PROMPTS => Ok(()),
        done => Err(format!("{done} committed, as before")),
    });
    broker.stop();
    broker.restart();
    wait_for_all(&site, PROMPTS);
    worker.signal(Signal::TERM);
    worker.end_within(LONG).expect(0).says("connected to").says("again");
    site.drain();
    assert_eq!(site.dead(), 0);
    site.assert_done(&prompts);
}

#[test]
fn an_enqueue_outlives_its_broker() {
    const PROMPTS: usize = 12_000;
    let broker = Broker::start();
    let mut site = Site::at(broker.url(), "publish");
    site.batch_size = 1;
    site.enqueued(&site.prompts(1));
    thread::sleep(QUEUE_ON_DISK);
    let prompts = site.prompts(PROMPTS);
    let mut command = site.enqueue(&prompts);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    wait_until("some jobs to be published", LONG, || match site.ready() {
        0..20 => Err("too few yet".to_owned()),
        _ => Ok(()),
    });
    broker.kill();
    broker.restart();
    let ended: tests::Ended = child.wait_with_output().unwrap().into();
    let summary = ended.expect(0).json();
    assert_eq!(summary["models"][0]["published"], PROMPTS, "{summary:#}");
    let mut hashes: Vec<String> = broker::drain(&site.url, &site.queue())
        .iter()
        .map(|message| serde_json::from_slice::<serde_json::Value>(&message.body).unwrap())
        .map(|job| job["prompts"][0]["hash"].as_str().unwrap().to_owned())
        .collect();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), PROMPTS, "nothing is missing");
}

#[test]
fn a_cluster_that_loses_the_leader_of_a_queue_goes_on() {
    const PROMPTS: usize = 1000;
    let cluster = Cluster::start(3);
    let site = Site::at(cluster.urls().join(","), "leader");
    let prompts = site.prompts(PROMPTS);
    site.enqueued(&prompts);
    let workers = [site.worker(&[]), site.worker(&[])];
    wait_for_work_in_hand(&site, PROMPTS);
    let leader = cluster.leader_of(&site.queue());
    cluster.kill_node(leader);
    wait_for_all(&site, PROMPTS);
    cluster.restart_node(leader);
    for worker in workers {
        worker.signal(Signal::TERM);
        worker.end_within(LONG).expect(0);
    }
    let alive = Site { url: cluster.urls()[(leader + 1) % 3].clone(), ..site };
    end(alive.consume(&UNTIL_EMPTY)).expect(0);
    assert_eq!(alive.dead(), 0);
    alive.assert_done(&prompts);
}

/// A small file system that can be full. Unmounted with the story.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn mount(at: &'a Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o"]).arg(format!("size={size}")).arg("lenspool-test").arg(at);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Tmpfs(at))
    }

    fn resize(&self, size: &str) {
        let status = Command::new("mount").arg("-o").arg(format!("remount,size={size}")).arg(self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_stops_workers_and_costs_nothing() {
    let mut site = Site::new("full");
    site.retry_delays = "2s,2s,2s".to_owned();
    let prompts = site.prompts(120);
    let save = site.save_path();
    let Some(tmpfs) = Tmpfs::mount(&save, "2m") else {
        eprintln!("NOT TOLD: this user may not mount a file system, so none can be full");
        return;
    };
    site.enqueued(&prompts);
    end(site.consume(&[])).expect(75).says("the file system is full");
    let done = check_committed(&save, MODEL).unwrap();
    assert!(done < 120, "it was never full");
    tmpfs.resize("200m");
    end(site.consume(&UNTIL_EMPTY)).expect(0);
    site.enqueued(&prompts);
    assert_eq!(site.dead(), 0);
    site.assert_done(&prompts);
}

/// Enqueues `prompts`, each job twice, the copies side by side.
fn enqueue_twice(site: &Site, prompts: &Path) {
    site.enqueued(prompts);
    for message in broker::drain(&site.url, &site.queue()) {
        for _ in 0..2 {
            let exchange = format!("{}.jobs", site.namespace);
            publish_raw(&site.url, &exchange, MODEL, &message.body, FieldTable::default());
        }
    }
}

#[test]
fn what_comes_twice_is_done_once() {
    let site = Site::new("twice");
    let prompts = site.prompts(40);
    enqueue_twice(&site, &prompts);
    // One at a time: otherwise both copies may be in hand before either is committed.
    let done = end(site.consume(&[&UNTIL_EMPTY[..], &["--prefetch", "1"]].concat())).expect(0).json();
    assert_eq!((&done["done"], &done["cached"]), (&40.into(), &40.into()), "{done:#}");
    assert_eq!(site.dead(), 0);
    site.assert_done(&prompts);
}

#[test]
fn both_copies_of_a_job_in_hand_at_once_end_as_one() {
    let site = Site::new("both");
    let prompts = site.prompts(40);
    enqueue_twice(&site, &prompts);
    // The copies lie side by side, and a worker looks at what is committed when it takes a job in hand.
    let done = end(site.consume(&[&UNTIL_EMPTY[..], &["--prefetch", "4"]].concat())).expect(0).json();
    let count = |key: &str| done[key].as_u64().unwrap();
    assert_eq!((count("jobs"), count("done") + count("cached"), count("failed")), (10, 80, 0), "{done:#}");
    assert!(count("done") > 40, "no two copies were in hand at once: {done:#}");
    assert_eq!(site.dead(), 0);
    site.assert_done(&prompts);
}

#[test]
fn a_job_that_outlives_the_brokers_patience_comes_again() {
    const PROMPTS: usize = 300;
    let broker = Broker::builder().ack_timeout(Duration::from_secs(10)).start();
    let site = Site::at(broker.url(), "late");
    let prompts = site.prompts(PROMPTS);
    site.enqueued(&prompts);
    let worker = site.worker(&UNTIL_EMPTY);
    wait_for_work_in_hand(&site, PROMPTS);
    worker.signal(Signal::STOP);
    thread::sleep(Duration::from_secs(1));
    let ready = site.ready();
    wait_until("the broker to take the jobs back", LONG, || match site.ready() {
        now if now > ready => Ok(()),
        now => Err(format!("{now} ready, {ready} before")),
    });
    worker.signal(Signal::CONT);
    worker.end_within(LONG).expect(0).says("comes again");
    site.drain();
    assert_eq!(site.dead(), 0);
    site.assert_done(&prompts);
}

#[test]
fn a_broker_short_of_memory_still_hears_what_is_done() {
    let broker = Broker::start();
    let site = Site::at(broker.url(), "alarm");
    let prompts = site.prompts(300);
    site.enqueued(&prompts);
    broker.memory_alarm(true);
    let done = end(site.consume(&UNTIL_EMPTY)).expect(0).json();
    assert_eq!((&done["done"], &done["lost"]), (&300.into(), &0.into()), "{done:#}");
    broker.memory_alarm(false);
    assert_eq!(site.dead(), 0);
    site.assert_done(&prompts);
}

#[test]
fn an_alarm_that_begins_in_the_middle_of_work_holds_up_nothing_but_what_failed() {
    const PROMPTS: usize = 1200;
    const BAD: usize = 800;
    let broker = Broker::start();
    let site = Site::at(broker.url(), "alarm-begins");
    let prompts = site.prompts(PROMPTS);
    site.enqueued(&prompts);
    // One job in the middle has a prompt that cannot be computed.
    let mut bad = String::new();
    for (at, message) in broker::drain(&site.url, &site.queue()).into_iter().enumerate() {
        let mut job: Value = serde_json::from_slice(&message.body).unwrap();
        if at == BAD / site.batch_size {
            job["prompts"][3]["ids"][0] = json!(999_999);
            job["prompts"][3]["hash"].as_str().unwrap().clone_into(&mut bad);
        }
        let exchange = format!("{}.jobs", site.namespace);
        publish_raw(&site.url, &exchange, MODEL, job.to_string().as_bytes(), FieldTable::default());
    }
    let worker = site.worker(&UNTIL_EMPTY);
    wait_for_work_in_hand(&site, PROMPTS);
    // Held still, so that what fails does so in the alarm.
    worker.signal(Signal::STOP);
    broker.memory_alarm(true);
    assert!(committed(&site) < BAD, "the job that fails was met before the alarm");
    worker.signal(Signal::CONT);
    wait_for_all(&site, PROMPTS - 1);
    assert_eq!(
        (site.ready(), site.dead()),
        (0, 0),
        "nothing is confirmed in an alarm, and nothing given back"
    );
    broker.memory_alarm(false);
    let ended = worker.end_within(LONG).expect(0).says("the broker takes no messages now");
    let done = ended.json();
    let jobs = PROMPTS / site.batch_size;
    assert_eq!(
        (&done["jobs"], &done["lost"], &done["failed"]),
        (&jobs.into(), &0.into(), &1.into()),
        "{done:#}"
    );
    let letters = site.dead_letters();
    assert!(letters.len() == 1 && letters[0].to_string().contains(&bad), "{letters:#?}");
    site.assert_done_but(&prompts, &[&bad]);
}

#[test]
fn a_worker_that_leaves_in_an_alarm_gives_back_what_it_could_not_move() {
    let broker = Broker::start();
    let site = Site::at(broker.url(), "alarm-leave");
    let prompts = site.prompts(8);
    site.enqueued(&prompts);
    for message in broker::drain(&site.url, &site.queue()) {
        let mut job: Value = serde_json::from_slice(&message.body).unwrap();
        job["prompts"][0]["ids"][0] = json!(999_999);
        let exchange = format!("{}.jobs", site.namespace);
        publish_raw(&site.url, &exchange, MODEL, job.to_string().as_bytes(), FieldTable::default());
    }
    broker.memory_alarm(true);
    let worker = site.worker(&UNTIL_EMPTY);
    wait_for_all(&site, 7);
    worker.signal(Signal::TERM);
    let left = worker.end_within(LONG).expect(0).says("the job goes back to its queue").json();
    assert_eq!((&left["jobs"], &left["lost"]), (&0.into(), &1.into()), "{left:#}");
    assert_eq!((site.ready(), site.dead()), (1, 0));
    broker.memory_alarm(false);
    let done = end(site.consume(&UNTIL_EMPTY)).expect(0).json();
    assert_eq!((&done["cached"], &done["failed"]), (&7.into(), &1.into()), "{done:#}");
    // What the first worker had sent may have been read after all: that letter lies there twice and counts once.
    assert_eq!(site.dead_letters().len(), 1);
}

#[test]
fn a_queue_deleted_under_a_worker_is_made_again() {
    let broker = Broker::start();
    let site = Site::at(broker.url(), "deleted");
    let worker = site.worker(&["--model", MODEL]);
    wait_until("the worker to take jobs", LONG, || match broker::queue_counts(&site.url, &site.queue()) {
        Some((_, 1)) => Ok(()),
        counts => Err(format!("{counts:?}")),
    });
    broker.rabbitmqctl(&["delete_queue", &site.queue()]).expect(0);
    let prompts = site.prompts(30);
    site.enqueued(&prompts);
    wait_for_all(&site, 30);
    worker.signal(Signal::TERM);
    worker.end_within(LONG).expect(0);
    site.drain();
    site.assert_done(&prompts);
}
