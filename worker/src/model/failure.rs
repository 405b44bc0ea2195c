//! What burn says went wrong on a device, as the kind of failure it is.

use burn::tensor::ExecutionError;

use crate::engine::EngineError;

/// Words of an allocation that failed. burn hands on texts, so these are all there is to tell it by.
const NO_MEMORY: [&str; 6] = [
    // cubecl's: the device is full, or no pool takes so much, or a launch had no memory.
    "out of device memory",
    "out-of-memory",
    "Can't allocate",
    "can't allocate buffer",
    // The host's memory that a device can write to.
    "Unable to reserve pinned memory",
    // The driver's own, of a launch or of loading a kernel.
    "CUDA_ERROR_OUT_OF_MEMORY",
];

/// What `error` is of; `card` describes the device.
pub(super) fn explain(error: &ExecutionError, card: &str) -> EngineError {
    let said = error.to_string();
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let no_memory = lines().find(|line| NO_MEMORY.iter().any(|text| line.contains(text)));
    if let Some(line) = no_memory {
        return EngineError::OutOfMemory(format!("{line} ({card})"));
    }
    // A cause stands under what it caused.
    let mut cause = None;
    let mut next_is_cause = true;
    for line in lines() {
        if next_is_cause {
            cause = Some(line);
        }
        next_is_cause = line.ends_with("Caused by:");
    }
    EngineError::Device(format!("{} ({card})", cause.unwrap_or("no reason given")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(reason: &str) -> EngineError {
        explain(&ExecutionError::with_context(reason), "a card of 80 GB")
    }

    /// The literal texts of cubecl 0.11.3 and cudarc 0.19.10, as they come out of burn.
    #[test]
    fn an_allocation_that_failed_is_told_from_a_failure_of_the_device() {
        let out_of_memory = [
            ("Several failures at once\n", "out of device memory allocating 512 bytes", "\n   0: a frame"),
            ("An IO error happened\nCaused by:\n  ", "can't allocate buffer of size: 9", "\n"),
            (
                "",
                "Can't allocate 9 bytes: every page size the memory tracks still holds live allocations",
                "",
            ),
            ("A launch error happened\nCaused by:\n  ", "An out-of-memory error happened during launch", ""),
            (
                "An unknown error happened during launch\nCaused by:\n  ",
                r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#,
                "\nBacktrace\n",
            ),
            (
                "A compilation error happened during launch\nCaused by:\n  ",
                r#"Unable to load the PTX: DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#,
                "\n",
            ),
            (
                "An IO error happened\nCaused by:\n  ",
                "Unknown error happened during execution: Unable to reserve pinned memory",
                "\n   0: a frame",
            ),
        ];
        for (before, cause, after) in out_of_memory {
            let told = EngineError::OutOfMemory(format!("{cause} (a card of 80 GB)"));
            assert_eq!(said(&format!("{before}{cause}{after}")), told);
        }
        let fault = said("A launch failed\nCaused by:\n  an illegal address\n   0: a frame");
        assert_eq!(fault, EngineError::Device("an illegal address (a card of 80 GB)".to_owned()));
    }
}
