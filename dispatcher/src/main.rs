//! The `dispatcher` command: the planning half of a distributed run. Not built yet; `worker run` plans and computes
//! in one process.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!(
        "dispatcher: distributed runs are not built yet; use `worker run`, which plans and computes in one process"
    );
    // EX_CONFIG: nothing will change until a newer lenspool is installed.
    ExitCode::from(78)
}
