//! Work over long bodies.

use tokio::runtime::{Handle, RuntimeFlavor};

/// From this many bytes on, work on a request takes a millisecond or more.
pub(super) const LONG: usize = 512 * 1024;

/// Does work over `bytes` of a request. For long work the runtime first moves the thread's other streams to another
/// thread.
pub(super) fn run_heavy<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let is_shared = || Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if bytes >= LONG && is_shared() { tokio::task::block_in_place(work) } else { work() }
}
