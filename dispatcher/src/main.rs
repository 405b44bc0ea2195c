//! The `dispatcher` command.

fn main() {}
