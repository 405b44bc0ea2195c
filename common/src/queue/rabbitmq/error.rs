//! What goes wrong with a broker, in the words of the person who has to act.

use std::{path::PathBuf, sync::Arc, time::Duration};

use lapin::{
    ErrorKind,
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
};

use crate::{job::FailureKind, settings::BrokerUrl};

/// Why the broker could not be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// The address means nothing.
    #[error(
        "{url} is no broker address ({reason}); give --amqp amqp://USER@HOST:5672/VHOST, or amqps:// for TLS"
    )]
    Address {
        /// As given, without its password.
        url: BrokerUrl,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting that cannot be.
    #[error("{setting} {reason}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The password or certificate file cannot be read.
    #[error("could not read {} ({setting}): {reason}", path.display())]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Nobody answers.
    #[error(
        "no broker answers at {url}: {reason}; check that it runs and that this machine may reach it, or name another with --amqp"
    )]
    Unreachable {
        /// Where.
        url: BrokerUrl,
        /// What was seen.
        reason: String,
    },
    /// TLS failed.
    #[error(
        "no TLS connection to {url}: {reason}; a private certificate authority is named with queue.ca_file"
    )]
    Tls {
        /// Where.
        url: BrokerUrl,
        /// What was seen.
        reason: String,
    },
    /// User or password are wrong.
    #[error(
        "the broker at {url} refuses the user {user:?}: {reason}; check the user and the password (queue.user, queue.password_file)"
    )]
    Login {
        /// Where.
        url: BrokerUrl,
        /// Who.
        user: String,
        /// What the broker said.
        reason: String,
    },
    /// The virtual host is missing or closed to the user.
    #[error(
        "the broker at {url} has no virtual host {vhost:?} for the user {user:?}: {reason}; an administrator makes it (rabbitmqctl add_vhost, set_permissions)"
    )]
    VirtualHost {
        /// Where.
        url: BrokerUrl,
        /// Who.
        user: String,
        /// The last part of the address.
        vhost: String,
        /// What the broker said.
        reason: String,
    },
    /// A queue or exchange is there with other arguments.
    #[error(
        "{what} exists with other arguments than lenspool's: {reason}; delete it once it is empty, use another queue.namespace, or set queue.passive to take it as it is"
    )]
    Arguments {
        /// Which.
        what: String,
        /// Which argument differs, in the broker's words.
        reason: String,
    },
    /// The user may not do this.
    #[error("the broker does not let this user {what}: {reason}; {advice}")]
    Permission {
        /// What was attempted.
        what: String,
        /// What the broker said.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// A queue or exchange is missing, and is not this program's to make.
    #[error("could not {what}: what that takes does not exist ({reason}); {advice}")]
    Missing {
        /// What was attempted.
        what: String,
        /// What the broker said.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// The connection broke.
    #[error("the connection to the broker broke while trying to {what}: {reason}")]
    Lost {
        /// What was attempted.
        what: String,
        /// What was seen.
        reason: String,
    },
    /// It stayed away.
    #[error("the broker stayed away for {}: {last}", humantime::format_duration(Duration::from_secs(patience.as_secs())))]
    GaveUp {
        /// For how long it was tried.
        patience: Duration,
        /// The last try's error.
        last: Box<BrokerError>,
    },
    /// The broker did not take a message.
    #[error("the broker did not take {what}: {reason}")]
    NotTaken {
        /// Which message.
        what: String,
        /// Why.
        reason: String,
    },
    /// A message that brokers refuse.
    #[error(
        "job {job} makes a message of {bytes} bytes, more than the {limit} a broker takes; lower --batch-size, or split its longest prompt"
    )]
    TooLarge {
        /// The job.
        job: String,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

impl BrokerError {
    /// Whether another try may succeed without anybody's help.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            BrokerError::Unreachable { .. }
                | BrokerError::Lost { .. }
                | BrokerError::GaveUp { .. }
                | BrokerError::NotTaken { .. }
        )
    }

    /// The kind of failure this is.
    pub fn kind(&self) -> FailureKind {
        if self.is_retryable() { FailureKind::Retryable } else { FailureKind::Permanent }
    }
}

/// What a declaration that is refused asks the user to do.
const DECLARE_ADVICE: &str = "give it configure rights on the namespace, or let an administrator make what `dispatcher topology` prints and set queue.passive";
const USE_ADVICE: &str = "give it read and write rights on the namespace's queues and exchanges";

/// An error of a channel or connection, tied to what was attempted.
pub(super) fn during(what: impl Into<String>, error: &lapin::Error) -> BrokerError {
    let what = what.into();
    if let ErrorKind::ProtocolError(amqp) = error.kind() {
        let reason = amqp.get_message().to_string();
        match amqp.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) if what.starts_with("declare the ") => {
                let what = what.trim_start_matches("declare ").to_owned();
                return BrokerError::Arguments { what, reason };
            }
            // As where a message is larger than this broker takes.
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) if what.starts_with("publish ") => {
                return BrokerError::NotTaken { what, reason };
            }
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
                let advice = if reason.contains("configure") || what.starts_with("declare") {
                    DECLARE_ADVICE
                } else {
                    USE_ADVICE
                };
                return BrokerError::Permission { what, reason, advice };
            }
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => {
                let advice =
                    "`dispatcher enqueue` makes it; where queue.passive is set, an administrator does";
                return BrokerError::Missing { what, reason, advice };
            }
            _ => {}
        }
    }
    BrokerError::Lost { what, reason: error.to_string() }
}

/// Who wanted to connect where.
pub(super) struct Attempt<'a> {
    pub(super) url: &'a BrokerUrl,
    pub(super) user: &'a str,
    pub(super) vhost: &'a str,
    pub(super) tls: bool,
}

/// An error while connecting.
pub(super) fn connecting(attempt: &Attempt<'_>, error: &lapin::Error) -> BrokerError {
    let (url, user) = (attempt.url.clone(), attempt.user.to_owned());
    match error.kind() {
        ErrorKind::ProtocolError(amqp) => {
            let reason = amqp.get_message().to_string();
            match amqp.kind() {
                AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => BrokerError::Login { url, user, reason },
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                    BrokerError::VirtualHost { url, user, vhost: attempt.vhost.to_owned(), reason }
                }
                _ => BrokerError::Unreachable { url, reason },
            }
        }
        ErrorKind::IOError(io) => io_error(attempt, io),
        _ => BrokerError::Unreachable { url, reason: error.to_string() },
    }
}

fn io_error(attempt: &Attempt<'_>, error: &Arc<std::io::Error>) -> BrokerError {
    let (url, reason) = (attempt.url.clone(), error.to_string());
    // A handshake that fails is an InvalidData error of rustls; what is refused or cut is not.
    if attempt.tls && error.kind() == std::io::ErrorKind::InvalidData {
        BrokerError::Tls { url, reason }
    } else {
        BrokerError::Unreachable { url, reason }
    }
}
