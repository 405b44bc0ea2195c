//! Ctrl-C and SIGTERM: the first asks for an orderly end, the second is obeyed at once. Leaving at once
//! is safe too: a file under its final name is whole.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use common::exit::Exit;

use crate::serve::Shutdown;

/// Whether SIGINT comes from the command that started this worker as one of several, which has its own reasons.
static ONE_OF_SEVERAL: AtomicBool = AtomicBool::new(false);

/// From now on only the second signal of a kind is obeyed at once: the system may send SIGTERM to all processes of a
/// job, and the command that started this one passes it on as SIGINT.
pub fn one_of_several() {
    ONE_OF_SEVERAL.store(true, Ordering::Relaxed);
}

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
        let second = std::mem::replace(asked, true);
        let either = interrupted && terminated && !ONE_OF_SEVERAL.load(Ordering::Relaxed);
        if second || either {
            // Destructors would wait for threads in the middle of their work.
            std::process::exit(Exit::Interrupted as i32);
        }
        shutdown.stop.cancel();
        tracing::warn!("stopping once what is in hand is finished; a second signal stops now");
    }
}
