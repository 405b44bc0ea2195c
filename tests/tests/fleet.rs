//! Several workers by one command: each device its own, signals passed on, nothing outliving the command.

use std::time::Duration;

use rustix::process::Signal;
use tests::{broker::wait_until, end, site::Site};

/// As the tests of one worker, but two, and on what every machine has.
const TWO: [&str; 4] = ["--devices", "cpu,cpu", "--max-idle", "3s"];

#[test]
fn one_command_starts_a_worker_a_device_and_sums_them_up() {
    let site = Site::new("fleet");
    let prompts = site.prompts(200);
    site.enqueued(&prompts);
    let mut args = TWO.to_vec();
    args.push("--exit-when-empty");
    let summaries = end(site.consume(&args)).expect(0).json();
    let summaries = summaries.as_array().expect("a summary a worker").clone();
    let done: Vec<u64> = summaries.iter().map(|summary| summary["done"].as_u64().unwrap()).collect();
    assert_eq!(done.len(), 2, "{summaries:#?}");
    assert_eq!(done.iter().sum::<u64>(), 200, "{summaries:#?}");
    assert!(summaries.iter().all(|summary| summary["device"] == "cpu"));
    site.assert_done(&prompts);
}

#[test]
fn a_signal_reaches_every_worker_and_nothing_outlives_the_command() {
    let site = Site::new("fleet-ends");
    site.enqueued(&site.prompts(16));
    let workers = || wait_for_workers(&site, 2);
    let fleet = site.worker(&["--devices", "cpu,cpu"]);
    workers();
    fleet.signal(Signal::TERM);
    fleet.end_within(Duration::from_secs(30)).expect(0);

    let fleet = site.worker(&["--devices", "cpu,cpu"]);
    workers();
    fleet.kill();
    wait_for_workers(&site, 0);
}

#[test]
fn devices_that_are_not_there_are_told() {
    let site = Site::at("amqp://127.0.0.1:1".to_owned(), "fleet-none");
    end(site.consume(&["--devices", "gpu"])).expect(78).says("no such device: \"gpu\"");
    if worker::model::device::cuda_devices() == 0 {
        end(site.consume(&["--devices", "all"])).expect(78).says("no CUDA device is visible");
    }
}

/// Waits until so many workers take jobs.
fn wait_for_workers(site: &Site, count: u32) {
    wait_until("workers to come or go", Duration::from_secs(60), || {
        match tests::broker::queue_counts(&site.url, &site.queue()) {
            Some((_, consumers)) if consumers == count => Ok(()),
            counts => Err(format!("{counts:?}")),
        }
    });
}
