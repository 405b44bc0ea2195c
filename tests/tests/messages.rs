//! What messages may say and workers may not do, and what becomes of jobs that fail.

use std::{fs, path::Path};

use common::prompt::PromptHash;
use lapin::types::FieldTable;
use serde_json::{Value, json};
use tests::{
    broker::{self, publish_raw},
    end, prompt_dirs,
    site::{MODEL, Site, UNTIL_EMPTY},
};

fn publish(site: &Site, body: &[u8]) {
    publish_raw(&site.url, &format!("{}.jobs", site.namespace), MODEL, body, FieldTable::default());
}

/// The jobs of a run, taken from their queue.
fn jobs(site: &Site) -> Vec<Value> {
    let messages = broker::drain(&site.url, &site.queue());
    messages.iter().map(|message| serde_json::from_slice(&message.body).unwrap()).collect()
}

/// The reason of each dead letter's last try.
fn reasons(site: &Site) -> Vec<String> {
    site.dead_letters().iter().map(|letter| letter.to_string()).collect()
}

#[test]
fn poison_is_set_aside_with_its_reason_and_good_jobs_are_done() {
    let mut site = Site::new("poison");
    site.batch_size = 4;
    let prompts = site.prompts(24);
    site.enqueued(&prompts);
    let good = jobs(&site);
    let elsewhere = tempfile::tempdir().unwrap();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut job = good[0].clone();
        change(&mut job);
        serde_json::to_vec(&job).unwrap()
    };
    let poison: Vec<(&str, Vec<u8>)> = vec![
        ("no job of lenspool", b"not json".to_vec()),
        ("no job of lenspool", b"{\"some\": \"thing\"}".to_vec()),
        ("is of version 99", changed(&|job| job["version"] = json!(99))),
        ("no job of version 1", changed(&|job| job["prompts"][0]["hash"] = json!("../../../tmp/x"))),
        ("is not absolute", changed(&|job| job["save_path"] = json!("attn_data"))),
        ("does not see the data directory", changed(&|job| job["save_path"] = json!("/nowhere/at/all"))),
        ("was not announced", changed(&|job| job["save_path"] = json!(elsewhere.path()))),
        ("was not announced", changed(&|job| job["run"] = json!("../../../../etc"))),
        ("cannot name a model", changed(&|job| job["model"]["name"] = json!("../up"))),
        ("is not what run", changed(&|job| job["shape"]["n_heads"] = json!(77))),
        ("are both", changed(&|job| job["prompts"][1] = job["prompts"][0].clone())),
        ("has no tokens", changed(&|job| job["prompts"][0]["ids"] = json!([]))),
        ("holds no prompts", changed(&|job| job["prompts"] = json!([]))),
        ("is not what run", changed(&|job| job["model"]["commit"] = json!("sha256:00"))),
    ];
    // Dead letters of one id are shown as one.
    let poison: Vec<(&str, Vec<u8>)> = poison
        .into_iter()
        .enumerate()
        .map(|(at, (said, body))| match serde_json::from_slice::<Value>(&body) {
            Ok(mut job) if job.get("id").is_some() => {
                job["id"] = json!(format!("poison-{at}"));
                (said, serde_json::to_vec(&job).unwrap())
            }
            _ => (said, body),
        })
        .collect();
    for (at, job) in good.iter().enumerate() {
        for (_, body) in poison.iter().skip(at * 3).take(3) {
            publish(&site, body);
        }
        publish(&site, &serde_json::to_vec(job).unwrap());
    }
    end(site.consume(&UNTIL_EMPTY)).expect(0);
    let reasons = reasons(&site);
    for (said, _) in &poison {
        assert!(reasons.iter().any(|reason| reason.contains(said)), "{said}: {reasons:#?}");
    }
    assert_eq!(reasons.len(), poison.len(), "{reasons:#?}");
    assert_eq!(
        fs::read_dir(elsewhere.path()).unwrap().count(),
        0,
        "nothing is written where nobody announced it"
    );
    site.assert_done(&prompts);
}

#[test]
fn a_worker_writes_only_where_it_is_allowed_to() {
    let mut site = Site::new("allowed");
    site.retry_delays = "10s,30m".to_owned();
    let prompts = site.prompts(8);
    site.enqueued(&prompts);
    let (other, own) = (tempfile::tempdir().unwrap(), site.dir.path().to_owned());
    let leaving = |allow: &Path, stay| {
        let mut command =
            site.consume(&["--exit-when-empty", "--max-idle", "1s", "--wait-for-retries", stay]);
        command.arg("--allow-save-path").arg(allow);
        end(command).expect(0)
    };
    leaving(other.path(), "0s").says("may not write to").says("--allow-save-path").says("1 for up to 10s");
    assert_eq!(prompt_dirs(&site.save_path(), MODEL).len(), 0);
    // One that may takes over.
    leaving(&own, "30s");
    site.assert_done(&prompts);
}

#[test]
fn one_bad_prompt_costs_that_prompt_and_not_its_batch() {
    let site = Site::new("one-bad");
    let prompts = site.prompts(16);
    site.enqueued(&prompts);
    let mut bad = Vec::new();
    for mut job in jobs(&site) {
        job["prompts"][3]["ids"][0] = json!(999_999);
        bad.push(job["prompts"][3]["hash"].as_str().unwrap().to_owned());
        publish(&site, &serde_json::to_vec(&job).unwrap());
    }
    let done = end(site.consume(&UNTIL_EMPTY)).expect(0).json();
    assert_eq!((&done["done"], &done["failed"]), (&14.into(), &2.into()), "{done:#}");
    let letters = site.dead_letters();
    assert_eq!(letters.len(), 2);
    for hash in &bad {
        let letter = letters.iter().map(Value::to_string).find(|letter| letter.contains(hash)).unwrap();
        assert!(letter.contains("999999") && letter.contains("vocabulary"), "{letter}");
    }
    let missing: Vec<_> = bad.iter().map(String::as_str).collect();
    site.assert_done_but(&prompts, &missing);
}

#[test]
fn what_may_pass_is_tried_again_as_often_as_there_are_waits() {
    let site = Site::new("retries");
    site.enqueued(&site.prompts(4));
    let moved = site.dir.path().join("moved");
    fs::rename(site.save_path(), &moved).unwrap();
    let worker = site.worker(&UNTIL_EMPTY);
    worker.end().expect(0).says("does not see the data directory");
    let [letter] = &broker::drain(&site.url, &format!("{}.dead", site.namespace))[..] else { panic!() };
    assert_eq!(letter.headers["lenspool-attempts"], 3, "one try and two more: {:#}", letter.headers);
    let history: Value = serde_json::from_str(letter.headers["lenspool-history"].as_str().unwrap()).unwrap();
    let times: Vec<&str> =
        history.as_array().unwrap().iter().map(|try_| try_["at"].as_str().unwrap()).collect();
    assert!(times.len() == 3 && times.is_sorted(), "{times:?}");
}

#[test]
fn a_worker_says_what_waits_when_it_leaves_and_stays_for_it_where_it_is_asked_to() {
    let mut site = Site::new("waiting");
    site.retry_delays = "6s,30m".to_owned();
    let prompts = site.prompts(4);
    site.enqueued(&prompts);
    let moved = site.dir.path().join("moved");
    fs::rename(site.save_path(), &moved).unwrap();
    // It leaves before the first wait is over.
    let left = end(site.consume(&["--exit-when-empty", "--max-idle", "1s"])).expect(0);
    let left = left.says("1 for up to 6s").says("--wait-for-retries").json();
    assert_eq!(left["waiting"], json!([{"delay_seconds": 6, "jobs": 1}]), "{left:#}");
    // The next one stays for it, but not for half an hour.
    let stay = ["--exit-when-empty", "--max-idle", "1s", "--wait-for-retries", "10s"];
    let left = end(site.consume(&stay)).expect(0).says("try 2 of 3").json();
    assert_eq!(left["waiting"], json!([{"delay_seconds": 1800, "jobs": 1}]), "{left:#}");
}

#[test]
fn a_run_computed_again_by_force_replaces_what_is_there() {
    let site = Site::new("force");
    let prompts = site.prompts(8);
    site.enqueued(&prompts);
    site.drain();
    let hash = PromptHash::of(
        serde_json::from_str::<Value>(fs::read_to_string(&prompts).unwrap().lines().next().unwrap()).unwrap()
            ["text"]
            .as_str()
            .unwrap(),
    );
    let file = site.save_path().join(MODEL).join("prompts").join(hash.as_str()).join("activations.npz");
    fs::write(&file, "torn by somebody else").unwrap();
    let mut command = site.enqueue(&prompts);
    command.arg("--force");
    assert_eq!(end(command).expect(0).json()["models"][0]["published"], 8);
    assert_eq!(site.drain()["done"], 8);
    site.assert_done(&prompts);
}
