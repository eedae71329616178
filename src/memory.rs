//! Memory that is free again goes back to the system (M92).
//!
//! An allocator keeps pages for the threads that asked for them, and a thread that sleeps gives none back. So when much was
//! freed, each thread is asked to in the next quiet moment: while requests come and go, they would only ask the system for
//! the same pages again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;

/// From so many bytes freed on it is worth the work.
const MUCH: usize = 8 << 20;
/// A moment is quiet when so little was freed for so long.
const LITTLE: usize = 1 << 20;
const QUIET: Duration = Duration::from_millis(500);
/// So long at the most is waited for it.
const AT_LATEST: Duration = Duration::from_secs(30);
/// A thread for blocking work ends after so long without any.
pub const THREADS_END: Duration = Duration::from_millis(500);
/// How often memory is asked for then, and after how long again: the threads that end meanwhile leave theirs to others, and
/// one that is busy isn't asked.
const TIMES: usize = 3;
const AGAIN: Duration = Duration::from_millis(600);

/// Bytes freed since memory was given back.
static FREED: AtomicUsize = AtomicUsize::new(0);
static MUCH_FREED: Notify = Notify::const_new();
/// Held while memory is given back: of several gateways in a process one does it.
static GIVING_BACK: Mutex<()> = Mutex::const_new(());
static OF_A_THREAD: OnceLock<fn()> = OnceLock::new();

/// Told once, by a program with an allocator of its own: what gives back the free memory of the thread that calls it.
pub fn allocator(of_a_thread: fn()) {
    OF_A_THREAD.get_or_init(|| of_a_thread);
}

/// About so many bytes are free again.
pub(crate) fn freed(bytes: usize) {
    if FREED.fetch_add(bytes, Ordering::Relaxed) + bytes >= MUCH {
        MUCH_FREED.notify_one();
    }
}

/// This thread has freed much that the next one wants. Only where the allocator can be asked for one thread.
pub(crate) fn give_back_now() {
    if let Some(of_a_thread) = OF_A_THREAD.get() {
        of_a_thread();
    }
}

/// Gives memory back whenever much is free. It never ends.
pub(crate) async fn give_back_when_quiet() {
    loop {
        MUCH_FREED.notified().await;
        let _alone = GIVING_BACK.lock().await;
        // It was done meanwhile.
        if FREED.load(Ordering::Relaxed) < MUCH {
            continue;
        }
        let quiet = async {
            loop {
                let before = FREED.load(Ordering::Relaxed);
                tokio::time::sleep(QUIET).await;
                if FREED.load(Ordering::Relaxed).saturating_sub(before) < LITTLE {
                    return;
                }
            }
        };
        // A moment that isn't quiet must do, too.
        tokio::time::timeout(AT_LATEST, quiet).await.unwrap_or_default();
        FREED.store(0, Ordering::Relaxed);
        for _ in 1..TIMES {
            give_back().await;
            tokio::time::sleep(AGAIN).await;
        }
        give_back().await;
    }
}

async fn give_back() {
    let mut tasks = JoinSet::new();
    match OF_A_THREAD.get() {
        // More than there are threads: they wake those that sleep, and each takes some.
        Some(of_a_thread) => (0..2 * Handle::current().metrics().num_workers()).for_each(|_| {
            tasks.spawn(async { of_a_thread() });
        }),
        None => {
            tasks.spawn_blocking(trim);
        }
    }
    tasks.join_all().await;
}

/// The system's allocator, where it can be asked: for all threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "no crate here has glibc's function")]
fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: malloc_trim(3) may be called at any time from any thread.
    unsafe {
        malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}
