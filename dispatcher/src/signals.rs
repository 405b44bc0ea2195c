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
    // Not whether an end was asked for: time may have been up, and the first signal is the first all the same.
    let mut asked = false;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if asked {
            std::process::exit(Exit::Interrupted as i32);
        }
        asked = true;
        stop.cancel();
        tracing::warn!("stopping once what is under way is on record; a second signal stops now");
    }
}
