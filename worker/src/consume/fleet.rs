//! `worker consume --devices`: several workers by one command, one a device, each a process of its own.
//!
//! A worker owns one device, so that a driver's fault costs one worker; this starts them, passes signals on, waits for
//! all and tells the worst of their exits. It takes no jobs itself.

use std::{collections::HashMap, num::NonZeroUsize, process::Stdio};

use common::{exit::Exit, plan::memory::default_batch_memory, settings::Run, talk::say};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use crate::{
    model::device::{DeviceChoice, UnknownDevice, cuda_devices},
    signals,
};

/// The flag by which a worker knows that it is one of several, and whose.
pub const MEMBER_FLAG: &str = "--member-of";

/// Why no workers were started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FleetError {
    /// A word that is no device.
    #[error("--devices: {0}, or all for every GPU there is")]
    Unknown(#[from] UnknownDevice),
    /// No GPU to be found.
    #[error(
        "--devices all: no CUDA device is visible to this worker; check nvidia-smi and CUDA_VISIBLE_DEVICES, and that \
         it was built with `--features cuda`"
    )]
    None,
}

/// The devices `asked` names: `all`, or one after the other.
pub fn devices(asked: &[String]) -> Result<Vec<DeviceChoice>, FleetError> {
    let all = asked.iter().any(|word| word == "all");
    let named = asked.iter().filter(|word| *word != "all").map(|word| Ok(word.parse::<DeviceChoice>()?));
    let mut devices = named.collect::<Result<Vec<_>, FleetError>>()?;
    if all {
        match cuda_devices() {
            0 => return Err(FleetError::None),
            // CUDA counts the devices that CUDA_VISIBLE_DEVICES shows.
            found => devices.extend((0..found).map(DeviceChoice::Cuda).filter(|it| !named_in(asked, *it))),
        }
    }
    Ok(devices)
}

fn named_in(asked: &[String], device: DeviceChoice) -> bool {
    asked.iter().any(|word| word.parse() == Ok(device))
}

/// Makes a worker that is one of several end when the command that started it is gone.
pub fn join(parent: u32) {
    signals::one_of_several();
    // The signal asks for an orderly end; it costs nothing where the parent passes its own on before.
    let asked = set_parent_process_death_signal(Some(Signal::TERM));
    let parent = i32::try_from(parent).ok().and_then(Pid::from_raw);
    if asked.is_err() || getppid() != parent {
        tracing::error!("the command that started this worker is gone");
        std::process::exit(Exit::Interrupted as i32);
    }
}

/// What each of several workers gets of this machine; none where the settings say how much each has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Threads to compute and encode with.
    pub threads: Option<NonZeroUsize>,
    /// Bytes of patterns of one forward pass.
    pub batch_bytes: Option<u64>,
}

impl Share {
    /// Of `workers` workers with these settings.
    pub fn of(run: &Run, workers: usize) -> Self {
        let workers = workers.max(1);
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = || NonZeroUsize::new((cores / workers).max(1));
        let memory = || default_batch_memory().shared_by(workers as u64);
        Share {
            threads: if run.threads.is_some() { None } else { threads() },
            batch_bytes: if run.batch_memory.is_some() { None } else { Some(memory()) },
        }
    }
}

/// Starts this very command once for each of `devices`, each with its `share`, and waits for all. With `json`, the summaries go to stdout as a list.
pub fn run(devices: &[DeviceChoice], share: Share, json: bool) -> Exit {
    // On this thread alone: workers end with the thread that started them.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("starting the async runtime: {error}");
            return Exit::Transient;
        }
    };
    runtime.block_on(async {
        let mut members = JoinSet::new();
        let mut pids = HashMap::with_capacity(devices.len());
        for (at, &device) in devices.iter().enumerate() {
            match start(device, share) {
                Ok(child) => {
                    pids.extend(
                        child.id().and_then(|id| Some((at, Pid::from_raw(i32::try_from(id).ok()?)?))),
                    );
                    members.spawn(async move { (at, device, child.wait_with_output().await) });
                }
                Err(error) => {
                    tracing::error!("starting a worker on {device}: {error}");
                    pass_on(&pids);
                    break;
                }
            }
        }
        let whole = members.len() == devices.len();
        let exit = wait(members, pids, json).await;
        if whole { exit } else { exit.max(Exit::Transient) }
    })
}

fn start(device: DeviceChoice, share: Share) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1));
    command.args(["--device", &device.to_string(), MEMBER_FLAG, &std::process::id().to_string()]);
    if let Some(threads) = share.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    if let Some(bytes) = share.batch_bytes {
        command.args(["--batch-memory", &bytes.to_string()]);
    }
    // A terminal's Ctrl-C is for this process; workers are told by it, once.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn()
}

/// Waits for every member; the worst exit.
async fn wait(
    mut members: JoinSet<(usize, DeviceChoice, std::io::Result<std::process::Output>)>,
    mut pids: HashMap<usize, Pid>,
    json: bool,
) -> Exit {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        tracing::error!("signals cannot be watched here");
        pass_on(&pids);
        return Exit::Transient;
    };
    let mut exit = Exit::Done;
    let mut summaries = Vec::new();
    loop {
        tokio::select! {
            member = members.join_next() => {
                let Some(member) = member else { break };
                let (at, device, output) = member.expect("waiting neither panics nor is aborted");
                // It is waited for: the number may be another process's from now on.
                pids.remove(&at);
                let (ended, summary) = told(device, output);
                exit = exit.max(ended);
                summaries.extend(summary);
            }
            _ = interrupt.recv() => pass_on(&pids),
            _ = terminate.recv() => pass_on(&pids),
        }
    }
    if json {
        let text = serde_json::to_string_pretty(&summaries).expect("what was JSON is JSON");
        say(format_args!("{text}\n"));
    }
    exit
}

/// Asks every member to end. By SIGINT: where the system sends SIGTERM to all processes of a job, members have that one
/// already, and a second of a kind means at once.
fn pass_on(pids: &HashMap<usize, Pid>) {
    for pid in pids.values() {
        let _ = kill_process(*pid, Signal::INT);
    }
}

/// How a member ended and what it summed up.
fn told(
    device: DeviceChoice,
    output: std::io::Result<std::process::Output>,
) -> (Exit, Option<serde_json::Value>) {
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            tracing::error!("waiting for the worker on {device}: {error}");
            return (Exit::Transient, None);
        }
    };
    let exit = output.status.code().and_then(Exit::of_code);
    match exit {
        Some(Exit::Done) => tracing::info!("the worker on {device} has ended"),
        Some(exit) => tracing::error!("the worker on {device} has ended with {}", exit as u8),
        // Its jobs go to another worker: the broker sees that it is gone.
        None => tracing::error!("the worker on {device} was ended by {}", output.status),
    }
    let summary = serde_json::from_slice::<serde_json::Value>(&output.stdout).ok().map(|mut summary| {
        if let Some(summary) = summary.as_object_mut() {
            summary.insert("device".to_owned(), device.to_string().into());
        }
        summary
    });
    (exit.unwrap_or(Exit::Transient), summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_the_machine_unless_told_how_much_each_has() {
        let (one, two) = (Share::of(&Run::default(), 1), Share::of(&Run::default(), 2));
        // What is available changes from one look to the next.
        assert!(two.batch_bytes.unwrap() <= one.batch_bytes.unwrap() + (64 << 20), "{one:?} {two:?}");
        assert!(two.threads <= one.threads);
        // No machine has so much that they get more than the least.
        assert_eq!(Share::of(&Run::default(), 1_000_000).batch_bytes, Some(128 << 20));
        let set = Run { threads: NonZeroUsize::new(3), ..Run::default() };
        assert_eq!(Share::of(&set, 2).threads, None);
    }

    fn asked(words: &[&str]) -> Result<Vec<DeviceChoice>, FleetError> {
        devices(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn devices_are_named_one_by_one() {
        assert_eq!(
            asked(&["cuda:1", "cpu", "cpu"]).unwrap(),
            [DeviceChoice::Cuda(1), DeviceChoice::Cpu, DeviceChoice::Cpu]
        );
        let error = asked(&["gpu"]).unwrap_err().to_string();
        assert!(
            error.ends_with("give cpu, cuda, cuda:N, wgpu or auto, or all for every GPU there is"),
            "{error}"
        );
    }

    #[test]
    fn all_is_every_gpu_or_an_error() {
        match cuda_devices() {
            0 => assert_eq!(asked(&["all"]), Err(FleetError::None)),
            found => assert_eq!(asked(&["all"]).unwrap().len(), found),
        }
    }
}
