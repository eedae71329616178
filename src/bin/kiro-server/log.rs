//! Log lines on standard error. A reader that stalls can't stop the server.
//!
//! A line goes into a buffer ([`Lines`]), and a thread of its own writes it: an unread pipe, a held terminal or a full
//! disk blocks only that thread. Lines that don't fit are dropped, counted (`kiro_log_lines_dropped_total`), and
//! reported in a line of their own once the reader is back.

use std::io::{self, IsTerminal, Write};
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiro_messages::config::{Config, LogFormat};
use kiro_messages::metrics::LOG_LINES_DROPPED;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// Bytes of lines that may wait to be written: some thousand lines. As many may be in the write itself.
const ROOM: usize = 1024 * 1024;
/// How long the last lines may take at the end of the process.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How long the thread gathers lines after a write: under load it wakes a hundred times a second, not at every line.
const GATHER: Duration = Duration::from_millis(10);
/// Pause when standard error is non-blocking and full.
const FULL_PAUSE: Duration = Duration::from_millis(10);

static LINES: Lines = Lines::new();

/// The log that runs; its level can be changed.
pub struct Log {
    set: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
}

impl Log {
    /// Starts logging as the configuration says, and the sending of spans. Libraries log from `warn` on.
    pub fn init(config: &Config, traces: Option<Box<dyn Layer<Registry> + Send + Sync>>) -> Self {
        let (filter, handle) = reload::Layer::new(filter(&config.log_level));
        let terminal = io::stderr().is_terminal();
        let format = config.log_format.unwrap_or(if terminal { LogFormat::Pretty } else { LogFormat::Json });
        LINES.start();
        let lines = fmt::layer().with_writer(|| &LINES);
        let lines = match format {
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
            LogFormat::Pretty => lines.with_ansi(terminal).compact().boxed(),
        };
        tracing_subscriber::registry().with(traces).with(lines.with_filter(filter)).init();
        // The default hook writes to standard error itself, on the thread that panicked. The message may hold a
        // client's text, so only the place is logged.
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            let said = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or_default();
            tracing::error!(place, said, "a defect of kiro-server: a thread panicked");
        }));
        Self { set: Box::new(move |filter| handle.reload(filter)) }
    }

    /// Logs at this level from now on.
    pub fn set_level(&self, level: &str) -> Result<(), String> {
        (self.set)(filter(level)).map_err(|error| error.to_string())
    }
}

/// Waits until all lines are written, at most for the last-lines time when the reader stalls. For the end of the
/// process.
pub fn finish() {
    LINES.finish(LAST_LINES);
}

/// Writes a line outside of the log, through [`Lines`] too.
pub fn say(line: &str) -> io::Result<()> {
    (&LINES).write_all(line.as_bytes())
}

fn filter(level: &str) -> EnvFilter {
    let others = if matches!(level, "error" | "off") { level } else { "warn" };
    EnvFilter::new(format!("{others},kiro_messages={level},kiro_server={level}"))
}

/// The lines that wait for the writing thread. `tracing-appender` bounds lines, not bytes, and writes each by itself.
struct Lines {
    waiting: Mutex<UnwrittenLines>,
    /// There is something to write.
    more: Condvar,
    /// Nothing is left to write.
    done: Condvar,
    /// Without the thread, lines are written by the thread that logs them.
    threaded: AtomicBool,
}

struct UnwrittenLines {
    bytes: Vec<u8>,
    /// Lines that didn't fit since the last report of them.
    dropped: u64,
    writing: bool,
}

impl Lines {
    const fn new() -> Self {
        Self {
            waiting: Mutex::new(UnwrittenLines { bytes: Vec::new(), dropped: 0, writing: false }),
            more: Condvar::new(),
            done: Condvar::new(),
            threaded: AtomicBool::new(false),
        }
    }

    fn start(&'static self) {
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(|| self.work());
        self.threaded.store(thread.is_ok(), Ordering::Release);
    }

    fn work(&self) {
        let mut batch = Vec::new();
        loop {
            let dropped = self.take(&mut batch);
            write(&batch);
            batch.clear();
            self.lock().writing = false;
            self.done.notify_all();
            if dropped > 0 {
                tracing::warn!(dropped, "log lines are missing here: nobody read standard error");
            }
            std::thread::sleep(GATHER);
        }
    }

    /// Waits for lines, and says how many were dropped after them.
    fn take(&self, batch: &mut Vec<u8>) -> u64 {
        let mut waiting =
            self.more.wait_while(self.lock(), |w| w.bytes.is_empty()).unwrap_or_else(PoisonError::into_inner);
        mem::swap(batch, &mut waiting.bytes);
        waiting.writing = true;
        mem::take(&mut waiting.dropped)
    }

    fn finish(&self, within: Duration) {
        if self.threaded.load(Ordering::Acquire) {
            let left = |w: &mut UnwrittenLines| w.writing || !w.bytes.is_empty();
            // A reader that still stalls has had its time.
            drop(self.done.wait_timeout_while(self.lock(), within, left));
        }
    }

    fn lock(&self) -> MutexGuard<'_, UnwrittenLines> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line a call, which is how `fmt` writes.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !self.threaded.load(Ordering::Acquire) {
            return io::stderr().write(line);
        }
        let mut waiting = self.lock();
        if waiting.bytes.len() + line.len() > ROOM {
            waiting.dropped += 1;
            LOG_LINES_DROPPED.fetch_add(1, Ordering::Relaxed);
        } else {
            let is_first = waiting.bytes.is_empty();
            waiting.bytes.extend_from_slice(line);
            drop(waiting);
            if is_first {
                self.more.notify_one();
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes to standard error. When that is broken, there is no place to report it.
fn write(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match io::stderr().write(bytes) {
            Ok(0) => return,
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(FULL_PAUSE),
            Err(_) => return,
        }
    }
}
