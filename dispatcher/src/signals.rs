//! Ctrl-C and SIGTERM: the first asks for an orderly end, the second is obeyed at once.

use common::exit::Exit;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Waits for signals for as long as the process lives.
pub async fn watch(stop: CancellationToken) {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if stop.is_cancelled() {
            std::process::exit(Exit::Interrupted as i32);
        }
        stop.cancel();
        tracing::warn!("stopping once what is under way is on record; a second signal stops now");
    }
}
