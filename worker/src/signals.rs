//! Ctrl-C and SIGTERM: the first asks for an orderly end, the second of a kind is obeyed at once. Of a kind, because a
//! worker that is one of several may get the system's SIGTERM and its command's SIGINT for one and the same reason.
//! Leaving at once is safe too: a file under its final name is whole.

use tokio::signal::unix::{SignalKind, signal};

use common::exit::Exit;

use crate::serve::Shutdown;

/// Waits for signals for as long as the process lives.
pub async fn watch(shutdown: Shutdown) {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::warn!("signals cannot be watched here: a kill stops the run at once, which is safe");
        return;
    };
    // Not whether an end was asked for: time may have been up, and the first signal is the first all the same.
    let (mut interrupted, mut terminated) = (false, false);
    loop {
        let asked = tokio::select! {
            _ = interrupt.recv() => &mut interrupted,
            _ = terminate.recv() => &mut terminated,
        };
        if std::mem::replace(asked, true) {
            // Destructors would wait for threads in the middle of their work.
            std::process::exit(Exit::Interrupted as i32);
        }
        shutdown.stop.cancel();
        tracing::warn!("stopping once what is in hand is finished; a second signal stops now");
    }
}
