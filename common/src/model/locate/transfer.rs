//! One transfer into the hub cache: hf-hub's events, the deadline, and the check of what arrived.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hf_hub::{
    HFError,
    progress::{DownloadEvent, ProgressEvent, ProgressHandler},
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    time::{Instant, sleep_until},
};

use super::files;

/// Why one try at a transfer came to nothing.
pub(super) enum Failure {
    Hub(HFError),
    /// The server said nothing for too long.
    Silent,
    /// What arrived is not what was announced.
    Torn(String),
}

/// Hands hf-hub's events over; the closure that hears of them need not live for ever.
pub(super) struct Forward(pub(super) UnboundedSender<DownloadEvent>);

impl ProgressHandler for Forward {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Download(event) = event {
            // Whoever no longer listens has given the transfer up.
            let _ = self.0.send(event.clone());
        }
    }
}

/// Awaits `transfer` as long as bytes keep coming. Gives its path and, if a transfer did take place, the
/// length that was announced for it.
pub(super) async fn watch(
    transfer: impl Future<Output = Result<PathBuf, HFError>>,
    mut events: UnboundedReceiver<DownloadEvent>,
    patience: Duration,
    mut report: impl FnMut(u64, u64),
) -> Result<(PathBuf, Option<u64>), Failure> {
    let mut transfer = std::pin::pin!(transfer);
    let mut deadline = Instant::now() + patience;
    let (mut announced, mut most) = (None, 0);
    let mut note = |event: DownloadEvent| {
        let bytes = match event {
            DownloadEvent::Start { total_bytes, .. } => {
                announced = Some(total_bytes);
                0
            }
            DownloadEvent::Progress { files } => files.iter().map(|file| file.bytes_completed).sum(),
            DownloadEvent::AggregateProgress { bytes_completed, .. } => bytes_completed,
            DownloadEvent::Complete => 0,
        };
        let moved = bytes > most;
        if moved {
            most = bytes;
            report(most, announced.unwrap_or(0));
        }
        moved
    };
    let path = loop {
        tokio::select! {
            biased;
            Some(event) = events.recv() => if note(event) { deadline = Instant::now() + patience },
            path = &mut transfer => break path.map_err(Failure::Hub)?,
            () = sleep_until(deadline) => return Err(Failure::Silent),
        }
    };
    while let Ok(event) = events.try_recv() {
        note(event);
    }
    Ok((path, announced))
}

/// Compares a file in the cache with what the hub announced, and removes it where they differ. The blob a
/// large file's link points to is named by the SHA-256 of its content.
pub(super) fn verify(path: &Path, announced: u64) -> Result<(), Failure> {
    let blob = path.canonicalize().map_err(|error| Failure::Hub(HFError::Io(error)))?;
    let length = std::fs::metadata(&blob).map_err(|error| Failure::Hub(HFError::Io(error)))?.len();
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    let problem = if length < announced {
        Some(format!("{length} bytes arrived of {announced}"))
    } else if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        let digest = files::sha256(&blob).map_err(|error| Failure::Hub(HFError::Io(error)))?;
        (digest != name.to_ascii_lowercase()).then(|| format!("its SHA-256 is {digest}, not {name}"))
    } else {
        None
    };
    match problem {
        None => Ok(()),
        Some(problem) => {
            // Left in place, it would be taken for the file by whoever looks into the cache next.
            let _ = std::fs::remove_file(path);
            let _ = std::fs::remove_file(&blob);
            Err(Failure::Torn(problem))
        }
    }
}
