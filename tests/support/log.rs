//! What one thread logs.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Once;

thread_local! {
    static HEARD: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Listens to this thread from [`Log::listen`] until it is dropped; what is watched must run on this thread alone.
pub struct Log(());

impl Log {
    /// One subscriber serves the whole process: with one for each thread, a line that another thread reaches first,
    /// without a subscriber, can be switched off for everybody (`tracing` remembers that nobody wanted it).
    pub fn listen() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(|| Thread).finish();
            tracing::subscriber::set_global_default(subscriber).expect("no other subscriber in this process");
        });
        HEARD.set(Some(Vec::new()));
        Self(())
    }

    /// The lines with these words in them, so far.
    pub fn lines(&self, with: &str) -> Vec<String> {
        let bytes = HEARD.with_borrow(|heard| heard.clone().unwrap_or_default());
        let text = String::from_utf8(bytes).expect("the log is text");
        text.lines().filter(|line| line.contains(with)).map(str::to_owned).collect()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        HEARD.set(None);
    }
}

struct Thread;

impl Write for Thread {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        HEARD.with_borrow_mut(|heard| heard.as_mut().map(|heard| heard.extend_from_slice(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
