//! Why a command ended early, and with which exit code.

use common::{
    exit::Exit,
    intake::{IntakeError, IntakeOptionsError, PlaceError},
    job::FailureKind,
    model::{locate::LocateError, reference::ModelRefError},
    prompt::load::LoadError,
    queue::rabbitmq::BrokerError,
    spool::SpoolError,
    store::StoreError,
};

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Options(#[from] IntakeOptionsError),
    #[error(transparent)]
    Model(#[from] ModelRefError),
    #[error(transparent)]
    Prompts(#[from] LoadError),
    #[error(transparent)]
    Intake(#[from] IntakeError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Locate(#[from] LocateError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// What was asked for is not there, or cannot be done as asked.
    #[error("{0}")]
    Request(String),
}

impl Error {
    /// The exit code it leads to.
    pub fn exit(&self) -> Exit {
        let kind = match self {
            Error::Locate(error) | Error::Intake(IntakeError::Locate(error)) => error.kind(),
            Error::Store(error)
            | Error::Intake(IntakeError::Store(error))
            | Error::Place(PlaceError::Store(error)) => error.kind(),
            Error::Spool(_) | Error::Intake(IntakeError::Spool(_)) => FailureKind::Retryable,
            Error::Broker(error) => error.kind(),
            _ => FailureKind::Permanent,
        };
        kind.into()
    }
}
