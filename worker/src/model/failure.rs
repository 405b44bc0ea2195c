//! What burn says went wrong on a device, as the kind of failure it is.

use burn::tensor::ExecutionError;

use super::{LoadError, device::DeviceError, footprint::Room};
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

/// Lines of a compiler's log that are told: the error, the line it is in, and where in it.
const LOG_LINES: usize = 3;

/// Why weights could not be placed on a device that had `room`.
pub(super) fn unplaced(error: &ExecutionError, room: Option<&Room>) -> LoadError {
    let card = room.map_or_else(|| "this device".to_owned(), Room::to_string);
    LoadError::Device(match explain(error, &card) {
        EngineError::OutOfMemory(said) => DeviceError::NoRoom(said),
        EngineError::Device(said) | EngineError::DeviceLost(said) => DeviceError::Failed(said),
        other => DeviceError::Failed(other.to_string()),
    })
}

/// What `error` is of; `card` describes the device.
pub(super) fn explain(error: &ExecutionError, card: &str) -> EngineError {
    let text = error.to_string();
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let no_memory = lines().find(|line| NO_MEMORY.iter().any(|words| line.contains(words)));
    // A smaller batch is no help on a device that is lost.
    if let (Some(line), false) = (no_memory, error.is_device_poisoned()) {
        return EngineError::OutOfMemory(format!("{line} ({card})"));
    }
    let said = format!("{} ({card})", root(&lines().collect::<Vec<_>>()));
    match error.is_device_poisoned() {
        true => EngineError::DeviceLost(said),
        false => EngineError::Device(said),
    }
}

/// The cause at the root of what `lines` tell, with what stands under it where it says little by itself.
fn root(lines: &[&str]) -> String {
    // A cause stands under what it caused.
    let after = lines.iter().rposition(|line| line.ends_with("Caused by:")).map_or(0, |at| at + 1);
    let Some((cause, under)) = lines.get(after..).and_then(<[&str]>::split_first) else {
        return "no reason given".to_owned();
    };
    let details = if cause.starts_with("[Compilation Error]") {
        // NVRTC's log, warnings before errors; then the kernel's source, all of it.
        let end = under.iter().position(|line| line.starts_with("[Source]")).unwrap_or(under.len());
        let log = &under[..end];
        let error = log.iter().position(|line| line.contains("error")).unwrap_or(0);
        log[error..].iter().take(LOG_LINES)
    } else if cause.starts_with("Too many resources") {
        // Which, and how much of it.
        under.iter().take(2)
    } else {
        [].iter().take(0)
    };
    let details: Vec<&str> = details.copied().collect();
    match details.is_empty() {
        true => (*cause).to_owned(),
        false => format!("{cause}: {}", details.join(" ")),
    }
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

    /// What the cause's own line leaves out, in the texts of the same versions and in NVRTC's.
    #[test]
    fn what_the_compiler_said_and_which_resource_is_short_is_told() {
        let launch = "A launch error happened\nCaused by:\n  ";
        let compilation = "A compilation error happened during launch\nCaused by:\n  \
                           An error caused the compilation to fail\nCaused by:\n  [Compilation Error] ";
        let error = "\n    default_program(12): error: identifier \"x\" is undefined\n      x = 1;\n      ^";
        let after = "\n    1 error detected in the compilation of \"default_program\".\n[Source]  \n\
                     #include <cuda_fp16.h>\n// error\n\nBacktrace:\nNo backtrace available";
        let told = "[Compilation Error]: default_program(12): error: identifier \"x\" is undefined x = 1; ^ \
                    (a card of 80 GB)";
        for warning in
            ["", "\n    default_program(3): warning #68-D: integer conversion\n      y = -1;\n      ^"]
        {
            let text = format!("{launch}{compilation}{warning}{error}{after}");
            assert_eq!(said(&text), EngineError::Device(told.to_owned()));
        }
        let silent = format!("{launch}{compilation}\n[Source]  \nint error;");
        assert_eq!(said(&silent), EngineError::Device("[Compilation Error] (a card of 80 GB)".to_owned()));

        let resources = "Too many resources were requested during launch\nToo much shared memory requested.\n\
                         Requested 200000 bytes, maximum 101376 bytes available.\nBacktrace\n   0: a frame";
        let told = "Too many resources were requested during launch: Too much shared memory requested. Requested \
                    200000 bytes, maximum 101376 bytes available. (a card of 80 GB)";
        assert_eq!(said(&format!("{launch}{resources}")), EngineError::Device(told.to_owned()));
        assert_eq!(said(""), EngineError::Device("no reason given (a card of 80 GB)".to_owned()));
    }

    #[test]
    fn a_device_that_is_lost_is_told_from_one_that_failed() {
        let error = ExecutionError::device_poisoned("an illegal address\nout of device memory, too");
        let lost = EngineError::DeviceLost("an illegal address (a card of 80 GB)".to_owned());
        assert_eq!(explain(&error, "a card of 80 GB"), lost);
    }

    #[test]
    fn weights_that_cannot_be_placed_concern_the_device() {
        let room = Room { name: "a card".to_owned(), total: 1 << 34, free: 1 << 30 };
        let unplaced = |error: ExecutionError| unplaced(&error, Some(&room)).to_string();
        let full = unplaced(ExecutionError::with_context("out of device memory allocating 512 bytes"));
        let told = "the model does not fit the device: out of device memory allocating 512 bytes (a card, 16.0 GiB, of which \
                    1.0 GiB are free); it takes";
        assert!(full.starts_with(told), "{full}");
        let lost = unplaced(ExecutionError::device_poisoned("an illegal address"));
        assert!(
            lost.starts_with("the device failed while the model was placed on it: an illegal address"),
            "{lost}"
        );
    }
}
