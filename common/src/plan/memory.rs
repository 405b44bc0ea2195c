//! How much memory a batch's patterns may take on this machine, where the user does not say.
//!
//! A job in a container or under Slurm sees the whole machine in /proc/meminfo but may use only what
//! its control groups allow, so the smaller of the two counts.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// A batch gets this part of the memory that is available: while one is computed, others wait to be
/// encoded, and the model and the rest of the machine need room too.
const PART: u64 = 8;
/// Below this, batches are too small to be worth their padding; above, larger ones gain nothing.
const SMALLEST: u64 = 128 << 20;
/// See [`SMALLEST`].
const LARGEST: u64 = 2 << 30;
/// Assumed where the machine does not tell.
const UNKNOWN: u64 = 4 << 30;

/// What says how much memory is available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemorySource {
    /// `MemAvailable` in /proc/meminfo.
    Machine,
    /// The limit of this control group, less what is used of it.
    ControlGroup(PathBuf),
    /// Nothing did.
    Unknown,
}

/// The default of `--batch-memory` and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchMemory {
    /// Bytes of float32 patterns a batch may have.
    pub batch_bytes: u64,
    /// Bytes available to this process.
    pub available: u64,
    /// What says so.
    pub source: MemorySource,
}

impl BatchMemory {
    /// Bytes of a batch's patterns where so many processes share what is available.
    pub fn shared_by(&self, processes: u64) -> u64 {
        share(self.available, processes)
    }
}

fn share(available: u64, processes: u64) -> u64 {
    (available / PART / processes.max(1)).clamp(SMALLEST, LARGEST)
}

impl fmt::Display for BatchMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes| bytesize::ByteSize(bytes).display().iec();
        write!(f, "{} a batch: ", size(self.batch_bytes))?;
        let part = match self.available / PART {
            part if part < SMALLEST => "less than that is an eighth of",
            part if part > LARGEST => "at most; an eighth is more of",
            _ => "an eighth of",
        };
        match &self.source {
            MemorySource::Machine => {
                write!(f, "{part} the {} this machine has available", size(self.available))
            }
            MemorySource::ControlGroup(path) => {
                write!(f, "{part} the {} that {} leaves", size(self.available), path.display())
            }
            MemorySource::Unknown => f.write_str("this machine does not tell how much memory is available"),
        }
    }
}

/// The default of `--batch-memory` on this machine, now.
pub fn default_batch_memory() -> BatchMemory {
    batch_memory_under(Path::new("/"))
}

fn batch_memory_under(root: &Path) -> BatchMemory {
    let (available, source) = machine_available(root)
        .map(|bytes| (bytes, MemorySource::Machine))
        .into_iter()
        .chain(
            control_groups(root).into_iter().map(|(bytes, path)| (bytes, MemorySource::ControlGroup(path))),
        )
        .min_by_key(|&(bytes, _)| bytes)
        .unwrap_or((UNKNOWN, MemorySource::Unknown));
    BatchMemory { batch_bytes: share(available, 1), available, source }
}

fn machine_available(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// What each limited control group of this process, or above it, leaves.
fn control_groups(root: &Path) -> Vec<(u64, PathBuf)> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        // "hierarchy:controllers:path"; version 2 is hierarchy 0 without controllers.
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (mount, limit, usage, inactive) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
        } else if controllers.split(',').any(|name| name == "memory") {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        } else {
            continue;
        };
        let mount = root.join(mount);
        // In a container the path may be the host's and not exist here; its parents, up to the mount, do.
        for group in
            mount.join(path.trim_start_matches('/')).ancestors().take_while(|dir| dir.starts_with(&mount))
        {
            let number = |name: &str| -> Option<u64> {
                fs::read_to_string(group.join(name)).ok()?.trim().parse().ok()
            };
            let (Some(limit), Some(usage)) = (number(limit), number(usage)) else { continue };
            // The page cache counts as used but is given up when asked for.
            let cache = fs::read_to_string(group.join("memory.stat"))
                .ok()
                .and_then(|stat| {
                    let mut lines = stat.lines();
                    lines.find_map(|line| line.strip_prefix(inactive)?.trim().parse::<u64>().ok())
                })
                .unwrap_or(0);
            found.push((limit.saturating_sub(usage.saturating_sub(cache)), group.to_path_buf()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A root directory with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\n");

    #[test]
    fn a_free_machine_gives_an_eighth() {
        let root = root(&[MEMINFO]);
        let memory = batch_memory_under(root.path());
        assert_eq!(
            memory,
            BatchMemory { batch_bytes: GIB, available: 8 * GIB, source: MemorySource::Machine }
        );
        assert_eq!(
            memory.to_string(),
            "1.0 GiB a batch: an eighth of the 8.0 GiB this machine has available"
        );
    }

    #[test]
    fn the_tightest_control_group_counts_and_its_page_cache_is_free() {
        let root = root(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/slurm/job_7/step_0\n"),
            ("sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max\n"),
            ("sys/fs/cgroup/slurm/job_7/step_0/memory.current", "1073741824\n"),
            ("sys/fs/cgroup/slurm/job_7/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/slurm/job_7/memory.current", "3221225472\n"),
            ("sys/fs/cgroup/slurm/job_7/memory.stat", "anon 1073741824\ninactive_file 1073741824\n"),
            ("sys/fs/cgroup/slurm/memory.max", "17179869184\n"),
            ("sys/fs/cgroup/slurm/memory.current", "0\n"),
        ]);
        let memory = batch_memory_under(root.path());
        assert_eq!(memory.available, 2 * GIB);
        assert_eq!(memory.batch_bytes, GIB / 4);
        assert_eq!(memory.source, MemorySource::ControlGroup(root.path().join("sys/fs/cgroup/slurm/job_7")));
    }

    #[test]
    fn version_1_counts_too_and_its_no_limit_is_a_large_number() {
        let files = |limit| {
            root(&[
                MEMINFO,
                ("proc/self/cgroup", "11:cpu,cpuacct:/x\n9:memory:/docker/abc\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", limit),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "0\n"),
            ])
        };
        assert_eq!(batch_memory_under(files("9223372036854771712\n").path()).source, MemorySource::Machine);
        let limited = batch_memory_under(files("1073741824\n").path());
        assert_eq!((limited.available, limited.batch_bytes), (GIB, SMALLEST));
    }

    #[test]
    fn a_machine_that_does_not_tell_gets_a_modest_batch() {
        let memory = batch_memory_under(root(&[]).path());
        assert_eq!((memory.batch_bytes, memory.source), (GIB / 2, MemorySource::Unknown));
    }

    #[test]
    fn several_processes_share_the_machine_and_not_the_largest_batch() {
        let large = BatchMemory { batch_bytes: LARGEST, available: 64 * GIB, source: MemorySource::Machine };
        assert_eq!(
            [1, 2, 8, 0].map(|processes| large.shared_by(processes)),
            [2 * GIB, 2 * GIB, GIB, 2 * GIB]
        );
        assert_eq!(large.shared_by(1000), SMALLEST);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(default_batch_memory().batch_bytes >= SMALLEST);
    }
}
