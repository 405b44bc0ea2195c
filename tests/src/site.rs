//! A small cluster on one machine: a broker's namespace, a data directory, prompts, and the two binaries.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Ended, binary, broker, check_committed, end, example_prompts, fixture, prompt_dirs, worker_run};

/// The model of most stories: small, and computed in a moment.
pub const MODEL: &str = "gpt2-tiny";

/// A worker that leaves once everything, further tries included, is over.
pub const UNTIL_EMPTY: [&str; 5] = ["--exit-when-empty", "--max-idle", "2s", "--wait-for-retries", "5s"];

/// Where a story happens.
pub struct Site {
    /// The broker's address.
    pub url: String,
    /// The prefix of its queues.
    pub namespace: String,
    /// Everything on disk.
    pub dir: TempDir,
    /// Waits before further tries, as the settings take them.
    pub retry_delays: String,
    /// Prompts of a job.
    pub batch_size: usize,
}

impl Site {
    /// A site of its own at the shared broker.
    pub fn new(name: &str) -> Site {
        Site::at(broker::shared().url(), name)
    }

    /// A site at another broker.
    pub fn at(url: String, name: &str) -> Site {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let namespace = broker::namespace(name);
        Site { url, namespace, dir, retry_delays: "1s,1s".to_owned(), batch_size: 8 }
    }

    /// The data directory.
    pub fn save_path(&self) -> PathBuf {
        self.dir.path().join("attn_data")
    }

    /// What `worker run` makes of the same prompts in one process, for comparison.
    pub fn single_process(&self, prompts: &Path) -> PathBuf {
        let save = self.dir.path().join("single");
        if !save.exists() {
            end(worker_run(&fixture(MODEL), prompts, &save)).expect(0);
        }
        save
    }

    /// A prompt file of `count` different prompts of mixed lengths.
    pub fn prompts(&self, count: usize) -> PathBuf {
        let path = self.dir.path().join(format!("prompts-{count}.jsonl"));
        let bundled = fs::read_to_string(example_prompts()).expect("the bundled prompts can be read");
        let texts: Vec<String> = bundled
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("a bundled line is JSON"))
            .map(|record| record["text"].as_str().expect("it has a text").to_owned())
            .collect();
        let line = |i: usize| {
            let text: String =
                texts[i % texts.len()].chars().skip(i / texts.len() * 7).take(40 + i % 110).collect();
            format!("{}\n", json!({"text": format!("{i} {text}")}))
        };
        fs::write(&path, (0..count).map(line).collect::<String>()).expect("prompts can be written");
        path
    }

    fn at_broker(&self, mut command: Command) -> Command {
        command
            .env("LENSPOOL_QUEUE_NAMESPACE", &self.namespace)
            .env("LENSPOOL_QUEUE_RETRY_DELAYS", &self.retry_delays)
            .env("LENSPOOL_RUN_DEVICE", "cpu")
            .env("LENSPOOL_RUN_BATCH_SIZE", self.batch_size.to_string())
            .env("AMQP_URL", &self.url)
            .current_dir(self.dir.path());
        command
    }

    /// `dispatcher` with `args`, at this site's broker.
    pub fn dispatcher(&self, args: &[&str]) -> Command {
        let mut command = self.at_broker(binary("dispatcher"));
        command.args(args);
        command
    }

    /// `dispatcher enqueue` of `prompts`, with a JSON summary.
    pub fn enqueue(&self, prompts: &Path) -> Command {
        let mut command = self.dispatcher(&["enqueue", "--json"]);
        command.arg("--model").arg(fixture(MODEL)).arg("--prompts").arg(prompts);
        command.arg("--save-path").arg(self.save_path());
        command
    }

    /// Enqueues `prompts` and returns the summary.
    pub fn enqueued(&self, prompts: &Path) -> Value {
        end(self.enqueue(prompts)).expect(0).json()
    }

    /// `worker consume` of this site's namespace.
    pub fn consume(&self, args: &[&str]) -> Command {
        let mut command = self.at_broker(binary("worker"));
        command.args(["consume", "--json", "--threads", "1"]).args(args);
        command
    }

    /// A worker to the end of all work.
    pub fn drain(&self) -> Value {
        end(self.consume(&UNTIL_EMPTY)).expect(0).json()
    }

    /// A worker in the background.
    pub fn worker(&self, args: &[&str]) -> Running {
        let mut command = self.consume(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(Some(command.spawn().unwrap_or_else(|error| panic!("starting {command:?}: {error}"))))
    }

    /// Asserts that everything asked for is there, once, whole and byte for byte what the single process makes; that
    /// no job is left anywhere but with the dead letters; and that no temporary file is.
    #[track_caller]
    pub fn assert_done(&self, prompts: &Path) {
        self.assert_done_but(prompts, &[]);
    }

    /// The same for all prompts but these hashes.
    #[track_caller]
    pub fn assert_done_but(&self, prompts: &Path, missing: &[&str]) {
        for queue in [self.queue(), self.retry_queue(0), self.retry_queue(1)] {
            let ready = broker::queue_counts(&self.url, &queue).map_or(0, |(ready, _)| ready);
            assert_eq!(ready, 0, "jobs are left in {queue}");
        }
        let (single, save) = (self.single_process(prompts), self.save_path());
        let mut expected = prompt_dirs(&single, MODEL);
        expected.retain(|hash, _| !missing.contains(&hash.as_str()));
        let mut found = prompt_dirs(&save, MODEL);
        found.retain(|hash, _| !missing.contains(&hash.as_str()));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (hash, dir) in &expected {
            let names = |dir: &Path| {
                let entries = fs::read_dir(dir).expect("a prompt's directory can be listed");
                let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
                names.sort();
                names
            };
            assert_eq!(names(&found[hash]), names(dir), "{hash}");
            for file in ["prompt.json", "activations.npz"] {
                let bytes = |dir: &Path| fs::read(dir.join(file)).expect("it was listed");
                assert!(bytes(dir) == bytes(&found[hash]), "{hash}/{file} differs from the single process's");
            }
        }
        assert_eq!(check_committed(&save, MODEL), Ok(expected.len()));
        let index = |save: &Path| -> Vec<String> {
            let text =
                fs::read_to_string(save.join(MODEL).join("prompts.jsonl")).expect("the index is there");
            let is_missing = |line: &&str| missing.iter().any(|hash| line.contains(hash));
            text.lines().filter(|line| !is_missing(line)).map(str::to_owned).collect()
        };
        assert_eq!(index(&save), index(&single), "prompts.jsonl");
    }

    fn retry_queue(&self, at: usize) -> String {
        let delay = self.retry_delays.split(',').nth(at).unwrap_or_default();
        format!("{}.retry.{delay}", self.namespace)
    }

    /// Every dead letter: what its headers say.
    pub fn dead_letters(&self) -> Vec<Value> {
        let shown = end(self.dispatcher(&["dead", "show", "--json"])).expect(0).json();
        shown.as_array().expect("a list").clone()
    }

    /// The queue of the model.
    pub fn queue(&self) -> String {
        format!("{}.jobs.{MODEL}", self.namespace)
    }

    /// What is ready in the model's queue.
    pub fn ready(&self) -> u32 {
        broker::queue_counts(&self.url, &self.queue()).map_or(0, |(ready, _)| ready)
    }

    /// What is ready in the queue of dead letters.
    pub fn dead(&self) -> u32 {
        broker::queue_counts(&self.url, &format!("{}.dead", self.namespace)).map_or(0, |(ready, _)| ready)
    }
}

/// A process that ends with the story.
pub struct Running(Option<Child>);

impl Running {
    /// kill -9.
    pub fn kill(mut self) {
        self.0.take().into_iter().for_each(kill);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        if let Some(child) = &self.0 {
            let pid = rustix::process::Pid::from_child(child);
            rustix::process::kill_process(pid, signal).expect("a child can be signalled");
        }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.0.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let child = self.0.take().expect("it was not waited for before");
        child.wait_with_output().expect("a child can be waited for").into()
    }

    /// Waits for its end, which must come within `limit`.
    pub fn end_within(mut self, limit: Duration) -> Ended {
        broker::wait_until("the process to end", limit, || {
            if self.runs() { Err("it runs".to_owned()) } else { Ok(()) }
        });
        self.end()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(kill);
    }
}

fn kill(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}
