//! The two halves with a broker between them: what was asked for is there, once, equal to the single process.

use tests::{
    broker::{self, wait_until},
    end,
    site::{Site, UNTIL_EMPTY},
};

#[test]
fn what_is_enqueued_is_computed_once_and_equals_the_single_process() {
    let site = Site::new("whole");
    let prompts = site.prompts(60);
    let summary = site.enqueued(&prompts);
    let model = &summary["models"][0];
    assert_eq!((&model["prompts"], &model["published"]), (&60.into(), &60.into()), "{summary:#}");
    assert_eq!(u64::from(site.ready()), model["jobs"].as_u64().unwrap());

    let done = site.drain();
    assert_eq!(
        (&done["done"], &done["failed"], &done["cached"]),
        (&60.into(), &0.into(), &0.into()),
        "{done:#}"
    );
    assert_eq!((site.ready(), site.dead()), (0, 0));
    site.assert_done(&prompts);

    // Everything is cached now: nothing to publish, and no run begins.
    let again = site.enqueued(&prompts);
    assert_eq!((&again["models"][0]["cached"], &again["models"][0]["published"]), (&60.into(), &0.into()));
    assert_eq!(site.ready(), 0);
}

#[test]
fn a_dry_run_publishes_and_writes_nothing() {
    let site = Site::at("amqp://127.0.0.1:1".to_owned(), "dry");
    let mut command = site.enqueue(&site.prompts(20));
    command.arg("--dry-run");
    let ended = end(command).expect(0);
    assert_eq!(ended.json()["models"][0]["planned"], 20);
    assert!(!site.save_path().exists());
}

#[test]
fn several_workers_share_a_run() {
    let site = Site::new("several");
    let prompts = site.prompts(200);
    site.enqueued(&prompts);
    let workers: Vec<_> = (0..3).map(|_| site.worker(&UNTIL_EMPTY)).collect();
    let done: Vec<_> = workers.into_iter().map(|worker| worker.end().expect(0).json()).collect();
    let sum: u64 = done.iter().map(|done| done["done"].as_u64().unwrap()).sum();
    assert_eq!(sum, 200, "{done:#?}");
    site.assert_done(&prompts);
}

#[test]
fn an_interrupted_enqueue_goes_on_and_publishes_no_confirmed_batch_twice() {
    let mut site = Site::new("resume");
    site.batch_size = 1;
    let prompts = site.prompts(3000);
    let mut command = site.enqueue(&prompts);
    command.stdout(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let ready =
        wait_until("some jobs to be published", std::time::Duration::from_secs(60), || match site.ready() {
            0..20 => Err("too few yet".to_owned()),
            ready => Ok(ready),
        });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ready < 3000, "it was killed too late to say anything");

    let summary = end(site.enqueue(&prompts)).expect(0).says("going on with run").json();
    let model = &summary["models"][0];
    let before = model["published_before"].as_u64().unwrap();
    assert!(before >= u64::from(ready).saturating_sub(1000), "{before} of {ready} were remembered");
    let ids = broker::drain(&site.url, &site.queue());
    let mut hashes: Vec<String> = ids
        .iter()
        .map(|message| {
            let job: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
            job["prompts"][0]["hash"].as_str().unwrap().to_owned()
        })
        .collect();
    let published = hashes.len();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 3000, "nothing is missing");
    // What the broker had confirmed when the kill came, but the record did not hold yet: a few at most.
    assert!(published - 3000 <= 1000, "{} jobs were published twice", published - 3000);
}
