//! One RabbitMQ process: its configuration, its ports, how it starts and how it ends.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{builder::Options, port::Port, sandbox::Sandbox, tls::Certificates, wait::wait_until};
use crate::{Ended, end};

/// The scripts themselves: those of the same names in /usr/sbin switch the user.
const BIN: &str = "/usr/lib/rabbitmq/bin";
/// A start on a busy machine with few cores; an idle one takes 5 s, after a kill 11 s.
const START: Duration = Duration::from_secs(180);
const STOP: Duration = Duration::from_secs(60);

/// A node, running or not; its data and ports stay the same.
#[derive(Debug)]
pub(super) struct Node {
    name: String,
    dir: PathBuf,
    pub(super) amqp: Port,
    pub(super) tls: Option<(Port, Certificates)>,
    pub(super) management: Option<Port>,
    distribution: Port,
    process: Mutex<Option<Child>>,
    sandbox: Arc<Sandbox>,
}

impl Node {
    /// Lays the configuration out and begins to start it. `peers` are all nodes of its cluster, where it has one.
    pub(super) fn launch(sandbox: &Arc<Sandbox>, name: &str, peers: &[String], options: &Options) -> Self {
        let dir = sandbox.dir().join(name);
        fs_err::create_dir(&dir).expect("a sandbox can be written");
        let node = Node {
            name: name.to_owned(),
            amqp: Port::reserve(),
            tls: options.tls.then(|| (Port::reserve(), Certificates::make(&dir))),
            management: options.management.then(Port::reserve),
            distribution: Port::reserve(),
            process: Mutex::new(None),
            sandbox: sandbox.clone(),
            dir,
        };
        node.write("rabbitmq.conf", &node.conf(peers, options));
        node.write("advanced.config", &options.advanced());
        node.write("enabled_plugins", if options.management { "[rabbitmq_management]." } else { "[]." });
        node.relaunch();
        node
    }

    /// Begins to start it again.
    pub(super) fn relaunch(&self) {
        let mut process = self.process();
        assert!(process.is_none(), "broker {} was started while it runs", self.name);
        let _ = std::fs::remove_file(self.pid_file()); // None at the first start.
        let log = fs_err::OpenOptions::new().create(true).append(true).open(self.log_file());
        let log = log.expect("a sandbox can be written").into_file();
        let server = Path::new(BIN).join("rabbitmq-server");
        let child = self
            .command("rabbitmq-server")
            .stdout(log.try_clone().expect("a file can be opened twice"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("starting {}: {error}; tests/run installs rabbitmq-server", server.display())
            });
        *process = Some(child);
    }

    /// Waits until it speaks AMQP, and HTTP where it was asked to.
    pub(super) fn wait_until_up(&self) {
        wait_until(&format!("broker {} to start", self.name), START, || {
            if let Some(status) = self.process().as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                panic!("broker {} ended at its start ({status}); {}", self.name, self.log_tail());
            }
            let state = |what, error| format!("{what}: {error}\n{}", self.log_tail());
            greet(&self.amqp).map_err(|error| state("AMQP", error))?;
            self.management
                .as_ref()
                .map_or(Ok(()), |port| connect(port).map(drop))
                .map_err(|error| state("management", error))
        });
    }

    /// kill -9.
    pub(super) fn kill(&self) {
        self.end_by(Signal::KILL);
    }

    /// An orderly stop.
    pub(super) fn stop(&self) {
        self.end_by(Signal::TERM);
    }

    /// `rabbitmqctl`, waited for.
    pub(super) fn ctl(&self, args: &[&str]) -> Ended {
        let mut command = self.command("rabbitmqctl");
        command.args(args);
        end(command)
    }

    /// What it logged.
    pub(super) fn log(&self) -> String {
        let bytes = fs_err::read(self.log_file()).expect("the log of a started broker can be read");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether it was started and neither killed nor stopped since.
    pub(super) fn is_running(&self) -> bool {
        self.process().is_some()
    }

    /// The folder of its sandbox.
    pub(super) fn sandbox_dir(&self) -> &Path {
        self.sandbox.dir()
    }

    /// Its name as Erlang knows it.
    pub(super) fn erlang_name(&self) -> String {
        erlang_name(&self.name)
    }

    fn end_by(&self, signal: Signal) {
        let mut child =
            self.process().take().unwrap_or_else(|| panic!("broker {} is not running", self.name));
        let pid_file = self.pid_file();
        let pid = fs_err::read_to_string(&pid_file).expect("a started broker has a pid file");
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.unwrap_or_else(|| panic!("{} holds no process id", pid_file.display()));
        kill_process(pid, signal).unwrap_or_else(|error| panic!("{signal:?} to {}: {error}", self.name));
        wait_until(&format!("broker {} to end by {signal:?}", self.name), STOP, || {
            match child.try_wait().expect("a child can be waited for") {
                Some(status) => Ok(status),
                None => Err(self.log_tail()),
            }
        });
    }

    /// One of RabbitMQ's scripts, for this node.
    fn command(&self, script: &str) -> Command {
        let mut command = self.sandbox.command(Path::new(BIN).join(script));
        let file = |name: &str| self.dir.join(name);
        command
            .env("RABBITMQ_NODENAME", self.erlang_name())
            .env("RABBITMQ_DIST_PORT", self.distribution.number().to_string())
            // Any free port, not one of the eleven that all rabbitmqctl of the machine share.
            .env("RABBITMQ_CTL_DIST_PORT_MIN", "0")
            .env("RABBITMQ_CTL_DIST_PORT_MAX", "0")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            )
            .env("ERL_CRASH_DUMP_SECONDS", "0") // Its log says it in fewer lines.
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", file("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", file("data"))
            .env("RABBITMQ_LOG_BASE", file("log"))
            .env("RABBITMQ_SCHEMA_DIR", file("schema"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", file("config"))
            .env("RABBITMQ_PID_FILE", self.pid_file())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn conf(&self, peers: &[String], options: &Options) -> String {
        let mut conf = format!(
            "listeners.tcp.local = 127.0.0.1:{}\n\
             vm_memory_high_watermark.absolute = {}\n\
             disk_free_limit.absolute = 100MB\n\
             log.file = false\n\
             log.console = true\n\
             log.console.level = info\n\
             log.console.use_colors = off\n",
            self.amqp.number(),
            options.memory
        );
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            writeln!(conf, "{key} = {value}").expect("a string can be written")
        };
        if let Some((port, certificates)) = &self.tls {
            line("listeners.ssl.local", &format!("127.0.0.1:{}", port.number()));
            line("ssl_options.cacertfile", &certificates.ca.display());
            line("ssl_options.certfile", &certificates.server.display());
            line("ssl_options.keyfile", &certificates.server_key.display());
            line("ssl_options.verify", &"verify_none");
            line("ssl_options.fail_if_no_peer_cert", &"false");
        }
        if let Some(port) = &self.management {
            line("management.tcp.ip", &"127.0.0.1");
            line("management.tcp.port", &port.number());
        }
        if !peers.is_empty() {
            line("cluster_formation.peer_discovery_backend", &"classic_config");
        }
        for (i, peer) in peers.iter().enumerate() {
            line(&format!("cluster_formation.classic_config.nodes.{}", i + 1), &erlang_name(peer));
        }
        conf
    }

    fn write(&self, name: &str, text: &str) {
        fs_err::write(self.dir.join(name), text).expect("a sandbox can be written");
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("pid")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log.txt")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        format!("the end of its log:\n{}", lines[lines.len().saturating_sub(80)..].join("\n"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The script that waits for the broker. The broker itself ends with the sandbox.
        if let Some(mut child) = self.process().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn erlang_name(name: &str) -> String {
    format!("{name}@localhost")
}

fn connect(port: &Port) -> std::io::Result<TcpStream> {
    TcpStream::connect(("127.0.0.1", port.number()))
}

/// Opens an AMQP connection as far as the broker's first frame: a port alone says less.
fn greet(port: &Port) -> std::io::Result<()> {
    let mut stream = connect(port)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"AMQP\x00\x00\x09\x01")?;
    stream.read_exact(&mut [0; 8])
}
