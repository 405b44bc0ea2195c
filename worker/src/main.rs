//! The `worker` command.

#[global_allocator]
// Large tensors come and go with every layer; the system allocator returns their pages each time.
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {}
