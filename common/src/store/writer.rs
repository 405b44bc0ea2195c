//! Who writes: an identity that goes into the name of every temporary file, and tells later runs
//! whether the process it belongs to still lives.
//!
//! A run may open the store more than once in a process, so each opening has a number of its own.
//! A process is named by host, *place* (one boot of one kernel and one process id namespace), process
//! id and start time. Only a process of one's own place can be looked up: two containers may share a
//! host name and not see each other's processes. All others are judged by age, see [`super::sweep`].

use std::{
    fmt, fs,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use sha2::{Digest, Sha256};

use crate::job::RunId;

/// What every temporary name begins with. The dot hides it; readers look for final names only.
pub const TEMP_PREFIX: &str = ".lenspool-tmp.";
/// What the name of a finished file begins with that is about to replace one many write, see [`super::shared`].
pub const READY_PREFIX: &str = ".lenspool-ready.";
/// What every temporary name ends with, so that no `*.npz` or `*.json` pattern finds one.
pub const TEMP_SUFFIX: &str = ".tmp";

/// One opening of the store by one process on behalf of one run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriterId {
    run: String,
    host: String,
    place: String,
    pid: u32,
    start: u64,
    instance: u64,
}

/// What is known of a writer's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It runs now.
    Alive,
    /// It has ended.
    Dead,
    /// It belongs to another machine or container: only time tells.
    Elsewhere,
}

impl WriterId {
    /// This process, writing on behalf of `run`. No two calls give the same identity.
    pub fn this_process(run: &RunId) -> Self {
        static INSTANCES: AtomicU64 = AtomicU64::new(0);
        let pid = std::process::id();
        WriterId {
            run: component(&run.0),
            host: component(&hostname()),
            place: place().to_owned(),
            pid,
            start: start_time(pid).unwrap_or(0),
            instance: INSTANCES.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The run, as far as its name fits into a file name.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// The host, as far as its name fits into a file name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The process id on that host.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether this writer works for `run`.
    pub fn works_for(&self, run: &RunId) -> bool {
        self.run == component(&run.0)
    }

    /// Reads what [`fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let mut next = || parts.next().filter(|part| !part.is_empty());
        let id = WriterId {
            run: next()?.to_owned(),
            host: next()?.to_owned(),
            place: next()?.to_owned(),
            pid: next()?.parse().ok()?,
            start: next()?.parse().ok()?,
            instance: next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(id)
    }

    /// The name of this writer's temporary file number `serial`.
    pub fn temp_name(&self, serial: u64) -> String {
        format!("{TEMP_PREFIX}{self}.{serial}{TEMP_SUFFIX}")
    }

    /// The name under which this writer's file number `serial` waits to replace `target`.
    pub fn ready_name(&self, target: &str, serial: u64) -> String {
        format!("{READY_PREFIX}{target}.{self}.{serial}{TEMP_SUFFIX}")
    }

    /// The writer a temporary file belongs to, or none where `name` is not one of ours.
    pub fn of_temp_name(name: &str) -> Option<Self> {
        let name = name.strip_suffix(TEMP_SUFFIX)?;
        let (id, serial) = match (name.strip_prefix(TEMP_PREFIX), name.strip_prefix(READY_PREFIX)) {
            (Some(rest), _) => rest.rsplit_once('.')?,
            (None, Some(rest)) => {
                let (rest, serial) = rest.rsplit_once('.')?;
                // The target's own name, which may hold dots, and the six parts of an identity.
                let dots: Vec<usize> = rest.rmatch_indices('.').map(|(at, _)| at).take(6).collect();
                (rest.get(dots.get(5)? + 1..)?, serial)
            }
            (None, None) => return None,
        };
        serial.parse::<u64>().ok()?;
        WriterId::parse(id)
    }

    /// Whether the writer's process runs now, as far as this process can know.
    pub fn liveness(&self) -> Liveness {
        if self.host != component(&hostname()) || self.place != place() {
            return Liveness::Elsewhere;
        }
        if self.pid == std::process::id() {
            return if self.start == start_time(self.pid).unwrap_or(0) {
                Liveness::Alive
            } else {
                Liveness::Dead
            };
        }
        let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw) else {
            return Liveness::Dead;
        };
        match start_time(self.pid) {
            // Another start time: the process id was given to someone else since.
            Some(start) if self.start != 0 && start != self.start => Liveness::Dead,
            Some(_) => Liveness::Alive,
            // No such process, a zombie, or /proc cannot be read: the first two have nothing left to write.
            None => match rustix::process::test_kill_process(pid) {
                Err(rustix::io::Errno::SRCH) => Liveness::Dead,
                _ if is_zombie(self.pid) => Liveness::Dead,
                _ => Liveness::Alive,
            },
        }
    }
}

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}.{}.{}", self.run, self.host, self.place, self.pid, self.start, self.instance)
    }
}

/// `text` as a part of a file name: dots separate parts, so none is left in, and it stays short.
/// What had to be changed is told apart by a digest.
pub(super) fn component(text: &str) -> String {
    const LONGEST: usize = 48;
    let safe: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' })
        .take(LONGEST)
        .collect();
    if safe == text && !safe.is_empty() {
        return safe;
    }
    let keep = safe.len().min(LONGEST - 9);
    format!("{}-{}", &safe[..keep], digest8(text))
}

fn digest8(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The boot and the process id namespace this process lives in, digested.
fn place() -> &'static str {
    static PLACE: OnceLock<String> = OnceLock::new();
    PLACE.get_or_init(|| {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        digest8(&format!("{}\0{}", boot.trim(), namespace.display()))
    })
}

/// State and start time of a process, from /proc.
fn stat(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name is in parentheses and may hold anything, spaces and parentheses included.
    let rest = stat.get(stat.rfind(')')? + 1..)?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // proc_pid_stat(5): state is field 3, starttime field 22.
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// When a process that can still run began, in clock ticks since boot.
fn start_time(pid: u32) -> Option<u64> {
    stat(pid).filter(|(state, _)| !is_ended(*state)).map(|(_, start)| start)
}

fn is_zombie(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| is_ended(state))
}

fn is_ended(state: char) -> bool {
    matches!(state, 'Z' | 'X' | 'x')
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn run(name: &str) -> RunId {
        RunId(name.to_owned())
    }

    /// A writer in another process of this machine.
    fn of_pid(pid: u32) -> WriterId {
        WriterId { pid, start: start_time(pid).unwrap(), ..WriterId::this_process(&run("r")) }
    }

    #[test]
    fn a_temporary_name_tells_its_writer() {
        for name in ["r1", "2025-01-02T03:04:05.678Z/../../x", "", "ünïcode", &"long".repeat(100)] {
            let writer = WriterId::this_process(&run(name));
            let temp = writer.temp_name(17);
            assert!(!temp.contains('/') && temp.len() < 255, "{temp}");
            assert_eq!(WriterId::of_temp_name(&temp).as_ref(), Some(&writer), "{temp}");
            let ready = writer.ready_name("prompts.jsonl", 3);
            assert_eq!(WriterId::of_temp_name(&ready).as_ref(), Some(&writer), "{ready}");
            assert!(writer.works_for(&run(name)));
            assert!(!writer.works_for(&run("another")));
        }
    }

    #[test]
    fn a_final_name_is_nobodys_temporary_file() {
        for name in [
            "prompt.json",
            "activations.npz",
            ".lenspool-tmp.tmp",
            ".lenspool-tmp.a.b.tmp",
            ".lenspool-tmp.a.b.c.d.e.f.g.tmp",
        ] {
            assert_eq!(WriterId::of_temp_name(name), None, "{name}");
        }
    }

    #[test]
    fn this_process_lives_and_its_successor_in_the_same_process_id_does_not_pass_for_it() {
        let me = WriterId::this_process(&run("r"));
        assert_eq!(me.liveness(), Liveness::Alive);
        assert_ne!(me, WriterId::this_process(&run("r")), "two openings share no names");
        let earlier = WriterId { start: me.start + 1, ..me.clone() };
        assert_eq!(earlier.liveness(), Liveness::Dead);
        let elsewhere = WriterId { host: "elsewhere".to_owned(), ..me.clone() };
        assert_eq!(elsewhere.liveness(), Liveness::Elsewhere);
        let other_container = WriterId { place: "00000000".to_owned(), ..me };
        assert_eq!(other_container.liveness(), Liveness::Elsewhere);
    }

    #[test]
    fn another_process_is_alive_until_it_is_killed_even_before_it_is_reaped() {
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        let writer = of_pid(child.id());
        assert_eq!(writer.liveness(), Liveness::Alive);
        child.kill().unwrap();
        // Not waited for yet: a zombie. The kernel needs a moment to make it one.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while writer.liveness() == Liveness::Alive && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(writer.liveness(), Liveness::Dead);
        child.wait().unwrap();
        assert_eq!(writer.liveness(), Liveness::Dead);
    }
}
