//! The program: arguments in, exit code out. Everything else is in the library.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What the allocator keeps: given back after a second, not ten. Slabs of 64 KiB for the buffers of connections instead
/// of one each: the allocator never gives back what it wrote down about a slab.
#[expect(unsafe_code, reason = "jemalloc's own weak symbol of this name is a pointer to such a string, too")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_SETTINGS: &[u8; 62] = b"dirty_decay_ms:1000,muzzy_decay_ms:0,slab_sizes:2049-14336:16\0";

fn main() -> ExitCode {
    cnblogs_proxy::cli::run()
}
