//! One temporary folder with all that its brokers own: home, cookie, data, logs, and an epmd on a port of its own.
//!
//! Nothing outlives the [`Sandbox`], nor the process that made it: see `supervise.sh`.

use std::{
    net::TcpStream,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{port::Port, wait::wait_until};

/// Folder, epmd and supervisor.
#[derive(Debug)]
pub(super) struct Sandbox {
    dir: PathBuf,
    epmd_port: Port,
    epmd: Child,
    supervisor: Child,
}

impl Sandbox {
    /// A new folder with a cookie in its home and an epmd that runs.
    pub(super) fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("lenspool-broker-")
            .tempdir()
            .unwrap_or_else(|error| panic!("making a temporary folder for a broker: {error}"))
            .keep(); // The supervisor removes it.
        let supervisor = Command::new("sh")
            .args(["-c", include_str!("supervise.sh"), "lenspool-broker-supervisor"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null()) // Whoever reads what the tests say must not wait for us.
            .stderr(Stdio::null())
            .process_group(0) // What interrupts the tests by their group must leave us the clean-up.
            .spawn()
            .unwrap_or_else(|error| panic!("starting a broker's supervisor with sh: {error}"));
        write_cookie(&dir);
        let epmd_port = Port::reserve();
        let epmd = start_epmd(&dir, &epmd_port);
        Sandbox { dir, epmd_port, epmd, supervisor }
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command with an environment that knows this sandbox and nothing of the machine's own broker.
    pub(super) fn command(&self, program: impl AsRef<Path>) -> Command {
        command(&self.dir, &self.epmd_port, program.as_ref())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        // It ends when everything is gone; what could not be reaped is no reason to panic in a drop.
        let _ = self.supervisor.wait();
        let _ = self.epmd.wait();
    }
}

fn command(dir: &Path, epmd_port: &Port, program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("LENSPOOL_TEST_SANDBOX", dir)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LANG", "C.UTF-8")
        .env("HOME", dir)
        .env("ERL_EPMD_PORT", epmd_port.number().to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .current_dir(dir)
        .stdin(Stdio::null());
    command
}

/// What lets the nodes and the command-line tools of one sandbox talk to each other.
fn write_cookie(dir: &Path) {
    use std::io::Write;
    let path = dir.join(".erlang.cookie");
    let cookie: u64 = rand::random();
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o400); // Erlang refuses a cookie that others can read.
    options
        .open(&path)
        .and_then(|mut file| write!(file, "{cookie:x}"))
        .unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
}

/// An epmd of our own: the one that a broker starts by itself outlives the broker.
fn start_epmd(dir: &Path, port: &Port) -> Child {
    let number = port.number();
    let child = command(dir, port, Path::new("epmd"))
        .args(["-port", &number.to_string(), "-address", "127.0.0.1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null()) // It remarks on our looking whether it is up.
        .spawn()
        .unwrap_or_else(|error| {
            panic!("starting epmd: {error}; it comes with Debian's rabbitmq-server, which tests/run installs")
        });
    wait_until("epmd", Duration::from_secs(30), || {
        TcpStream::connect(("127.0.0.1", number)).map_err(|error| format!("127.0.0.1:{number}: {error}"))
    });
    child
}
