//! Connecting: which broker, as whom, trusting whom; one try bounded in time, with an error that says what to do.

use std::{fs, path::Path, time::Duration};

use lapin::{
    Connection, ConnectionProperties,
    tcp::OwnedTLSConfig,
    uri::{AMQPScheme, AMQPUri},
};

use super::{
    error::{Attempt, BrokerError, connecting},
    topology::Names,
};
use crate::{
    model::reference::ModelName,
    settings::{BrokerUrl, Queue, Secret},
};

/// Seconds without a sign of life after which a connection counts as dead. Compute owns its own thread, so
/// heartbeats are never late.
const HEARTBEAT: u16 = 30;

/// A broker as the settings describe it.
#[derive(Clone, Debug)]
pub struct Broker {
    nodes: Vec<Node>,
    ca: Option<String>,
    timeout: Duration,
    /// For how long a lost broker is tried again.
    pub patience: Duration,
    /// What everything is called there.
    pub names: Names,
    /// Whether nothing may be declared.
    pub passive: bool,
}

#[derive(Clone)]
struct Node {
    url: BrokerUrl,
    uri: AMQPUri,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URI holds the password.
        self.url.fmt(f)
    }
}

impl Broker {
    /// Reads the settings, and the files they name. Connects to nothing.
    pub fn new(settings: &Queue) -> Result<Broker, BrokerError> {
        let password = match &settings.password_file {
            Some(path) => Some(first_line(path)?),
            None => settings.password.clone(),
        };
        let ca = settings.ca_file.as_deref().map(|path| read("queue.ca_file", path)).transpose()?;
        if let (Some(path), Some(pem)) = (&settings.ca_file, &ca)
            && !pem.contains("-----BEGIN CERTIFICATE-----")
        {
            let reason = "it holds no certificate in PEM format".to_owned();
            return Err(BrokerError::File { setting: "queue.ca_file", path: path.clone(), reason });
        }
        let nodes = settings.amqp.nodes();
        let nodes = nodes.into_iter().map(|url| node(url, settings.user.as_deref(), password.as_ref()));
        Ok(Broker {
            nodes: nodes.collect::<Result<_, _>>()?,
            ca,
            timeout: settings.timeout.0,
            patience: settings.patience.0,
            names: Names::new(settings)?,
            passive: settings.passive,
        })
    }

    /// Connects once: to each node in turn until one answers, in the time the settings give to each. `role` is
    /// what an administrator sees the connection called.
    pub async fn connect(&self, role: &str) -> Result<Connection, BrokerError> {
        let mut last = None;
        // Where there are several, clients spread over them.
        let start = rand::random_range(0..self.nodes.len().max(1));
        for i in 0..self.nodes.len() {
            match self.connect_to(&self.nodes[(start + i) % self.nodes.len()], role).await {
                Ok(connection) => return Ok(connection),
                // The others of a cluster would say the same.
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| BrokerError::Address {
            url: BrokerUrl::new(""),
            reason: "it is empty".to_owned(),
        }))
    }

    async fn connect_to(&self, Node { url, uri }: &Node, role: &str) -> Result<Connection, BrokerError> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name = format!("lenspool {role} on {host}, process {}", std::process::id());
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = OwnedTLSConfig { identity: None, cert_chain: self.ca.clone() };
        let attempt = Attempt {
            url,
            user: &uri.authority.userinfo.username,
            vhost: &uri.vhost,
            tls: uri.scheme == AMQPScheme::AMQPS,
        };
        let unreachable = |reason: String| BrokerError::Unreachable { url: url.clone(), reason };
        let runtime = lapin::runtime::default_runtime().map_err(|error| unreachable(error.to_string()))?;
        let connect = Connection::connect_uri_with_config(uri.clone(), properties, tls, runtime);
        match tokio::time::timeout(self.timeout, connect).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(connecting(&attempt, &error)),
            Err(_) => {
                let waited = humantime::format_duration(self.timeout);
                Err(unreachable(format!("no answer within {waited} (queue.timeout)")))
            }
        }
    }

    /// The first node's host, user and password, for the management API.
    pub(super) fn login(&self) -> Option<(&str, Secret)> {
        let user = &self.nodes.first()?.uri.authority.userinfo;
        Some((&user.username, Secret::new(user.password.clone())))
    }

    /// What must be there for `models`, as definitions to import.
    pub fn definitions(&self, models: &[ModelName]) -> serde_json::Value {
        self.names.definitions(models, self.vhost())
    }

    /// The virtual host.
    pub(super) fn vhost(&self) -> &str {
        self.nodes.first().map_or("/", |node| &node.uri.vhost)
    }

    /// Where it is, without passwords.
    pub fn shown(&self) -> String {
        self.nodes.iter().map(|node| node.url.to_string()).collect::<Vec<_>>().join(",")
    }
}

fn node(url: BrokerUrl, user: Option<&str>, password: Option<&Secret>) -> Result<Node, BrokerError> {
    let text = url.reveal().trim();
    // The parser's words would repeat the address, and with it a password.
    let unreadable =
        || BrokerError::Address { url: url.clone(), reason: "it cannot be read as one".to_owned() };
    if !text.contains("://") {
        return Err(unreadable());
    }
    let mut uri: AMQPUri = text.parse().map_err(|_: String| unreadable())?;
    if uri.authority.host.is_empty() {
        return Err(BrokerError::Address { url, reason: "it names no host".to_owned() });
    }
    let login = &mut uri.authority.userinfo;
    if let Some(user) = user {
        user.clone_into(&mut login.username);
    }
    if let Some(password) = password {
        password.reveal().clone_into(&mut login.password);
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT);
    Ok(Node { url, uri })
}

fn read(setting: &'static str, path: &Path) -> Result<String, BrokerError> {
    fs::read_to_string(path).map_err(|error| BrokerError::File {
        setting,
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

fn first_line(path: &Path) -> Result<Secret, BrokerError> {
    let text = read("queue.password_file", path)?;
    match text.lines().next().map(str::trim_end).filter(|line| !line.is_empty()) {
        Some(line) => Ok(Secret::new(line)),
        None => Err(BrokerError::File {
            setting: "queue.password_file",
            path: path.to_owned(),
            reason: "its first line is empty".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Queue {
        Queue { amqp: BrokerUrl::new(url), ..Queue::default() }
    }

    #[test]
    fn the_more_particular_login_wins() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        fs::write(&file, "from file\nignored\n").unwrap();
        let login = |settings: &Queue| {
            let broker = Broker::new(settings).unwrap();
            let (user, password) = broker.login().unwrap();
            (user.to_owned(), password.reveal().to_owned())
        };
        let mut settings = settings("amqp://me:in%20url@host/v");
        assert_eq!(login(&settings), ("me".to_owned(), "in url".to_owned()));
        settings.password = Some(Secret::new("setting"));
        settings.user = Some("other".to_owned());
        assert_eq!(login(&settings), ("other".to_owned(), "setting".to_owned()));
        settings.password_file = Some(file.clone());
        assert_eq!(login(&settings).1, "from file");
        fs::write(&file, "\nx").unwrap();
        let error = Broker::new(&settings).unwrap_err().to_string();
        assert!(error.contains("its first line is empty") && error.contains("password"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_told_without_the_password() {
        for (url, said) in [
            ("", "is no broker address"),
            ("localhost:5672", "is no broker address"),
            ("http://me:sesame@host", "is no broker address"),
            ("me:sesame@host", "is no broker address"),
            ("amqp:me:sesame@host", "is no broker address"),
        ] {
            let error = Broker::new(&settings(url)).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("sesame"), "{url:?}: {error}");
        }
        let broker = Broker::new(&settings("amqp://a:sesame@x,amqps://b:sesame@y:1/v")).unwrap();
        assert!(!format!("{broker:?} {}", broker.shown()).contains("sesame"));
        let ca_file = Some("/nowhere/ca.pem".into());
        let error = Broker::new(&Queue { ca_file, ..Queue::default() }).unwrap_err().to_string();
        assert!(error.contains("/nowhere/ca.pem") && error.contains("queue.ca_file"), "{error}");
    }
}
