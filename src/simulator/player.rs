//! The body of a simulated answer: plays a [`StreamScript`] at its pace.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::connection::SimConnection;
use super::script::{End, ScriptStep, StreamScript};
use super::state::{ChatEnd, ChatFlight};

/// Bytes of one write when the script sets no burst.
const WRITE: usize = 64 << 10;
/// The pause before a cut, so that written bytes reach the client.
const BEFORE_CUT: Duration = Duration::from_millis(5);

/// Plays a script once. Dropping it before its end means that the client has gone away.
pub(super) struct Player {
    script: StreamScript,
    connection: Arc<SimConnection>,
    flight: ChatFlight,
    /// The step to play next, and the number reached in it.
    step: usize,
    number: u64,
    /// The rest of the current write.
    write: Bytes,
    sent: u64,
    /// When the next write is due, by the script's pace.
    due: Instant,
    started: bool,
    pause: Pause,
    sleep: Pin<Box<Sleep>>,
    ended: bool,
}

/// The pause before the next piece.
enum Pause {
    None,
    /// One turn of the event loop, so that the last piece is written by itself.
    Flush,
    Sleeping,
}

impl Player {
    pub fn new(script: StreamScript, connection: Arc<SimConnection>, flight: ChatFlight) -> Self {
        let now = Instant::now();
        let due = now + script.pace.first;
        let pause = if script.pace.first.is_zero() { Pause::None } else { Pause::Sleeping };
        let sleep = Box::pin(sleep_until(due));
        let (step, number, write, sent, started, ended) = (0, 0, Bytes::new(), 0, false, false);
        let mut player =
            Self { script, connection, flight, step, number, write, sent, due, started, pause, sleep, ended };
        if player.is_end_stream() {
            player.flight.land(ChatEnd::Completed);
        }
        player
    }

    fn sleep_for(&mut self, duration: Duration) {
        self.due = Instant::now() + duration;
        self.sleep_until_due();
    }

    fn sleep_until_due(&mut self) {
        self.sleep.as_mut().reset(self.due);
        self.pause = Pause::Sleeping;
    }

    /// The next piece of the current write, within the limit.
    fn piece(&mut self) -> Option<Bytes> {
        if let Some(limit) = self.script.limit {
            let left = usize::try_from(limit - self.sent).unwrap_or(usize::MAX);
            if self.write.len() >= left {
                self.write.truncate(left);
                self.step = self.script.steps.len();
            }
        }
        let len = self.script.pace.write_bytes.unwrap_or(usize::MAX).min(self.write.len());
        let piece = self.write.split_to(len);
        self.sent += len as u64;
        (!piece.is_empty()).then_some(piece)
    }

    /// Gathers the events of the next write. False when the script is over or a pause comes first.
    fn gather(&mut self) -> io::Result<bool> {
        if self.step == self.script.steps.len() {
            return Ok(false);
        }
        if let ScriptStep::Wait(wait) = self.script.steps[self.step] {
            self.step += 1;
            // The silence stands in for the gap.
            self.started = false;
            self.sleep_for(wait);
            return Ok(false);
        }
        let pace = self.script.pace;
        if self.started && !pace.gap.is_zero() {
            self.due += pace.gap;
            self.started = false;
            if self.due > Instant::now() {
                self.sleep_until_due();
                return Ok(false);
            }
        }
        self.started = true;
        let burst = pace.burst.unwrap_or(if pace.gap.is_zero() { usize::MAX } else { 1 });
        let mut events = 0;
        // Consecutive events go out as they lie; only numbered ones are written here.
        let mut range: Option<Range<usize>> = None;
        let mut numbered = Vec::new();
        while events < burst && numbered.len() < WRITE {
            match self.script.steps.get(self.step) {
                Some(ScriptStep::Event(_)) if !numbered.is_empty() => break,
                Some(ScriptStep::Event(event)) => {
                    let start = range.map_or(event.start, |range| range.start);
                    range = Some(start..event.end);
                    self.step += 1;
                    events += 1;
                    if event.end - start >= WRITE {
                        break;
                    }
                }
                Some(ScriptStep::Numbered(_)) if range.is_some() => break,
                Some(ScriptStep::Numbered(step)) => {
                    if self.number == step.count {
                        self.step += 1;
                        self.number = 0;
                        continue;
                    }
                    step.write(self.number, &mut numbered).map_err(io::Error::other)?;
                    self.number += 1;
                    events += 1;
                }
                Some(ScriptStep::Frames(frames)) => {
                    if let Some(range) = range.take() {
                        numbered.extend_from_slice(&self.script.wire[range]);
                    }
                    numbered.extend_from_slice(frames);
                    self.step += 1;
                    events += 1;
                }
                // A script that plays was staged: it has none of these.
                Some(ScriptStep::Think { .. } | ScriptStep::Notes(_)) => self.step += 1,
                Some(ScriptStep::Wait(_)) | None => break,
            }
        }
        // An exhausted numbered step must be passed, or the end would not be seen.
        if let Some(ScriptStep::Numbered(step)) = self.script.steps.get(self.step)
            && self.number == step.count
        {
            self.step += 1;
            self.number = 0;
        }
        self.flight.events += events as u64;
        self.write = range.map_or_else(|| Bytes::from(numbered), |range| self.script.wire.slice(range));
        Ok(true)
    }

    fn is_over(&self) -> bool {
        self.write.is_empty() && self.step == self.script.steps.len()
    }
}

impl Body for Player {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        loop {
            match this.pause {
                Pause::None => {}
                Pause::Flush => {
                    this.pause = Pause::None;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Pause::Sleeping => {
                    ready!(this.sleep.as_mut().poll(cx));
                    this.pause = Pause::None;
                }
            }
            if let Some(piece) = this.piece() {
                let pace = this.script.pace;
                if !this.write.is_empty() && !pace.write_gap.is_zero() {
                    this.sleep_for(pace.write_gap);
                } else if pace.burst.is_some() || pace.write_bytes.is_some() {
                    this.pause = Pause::Flush;
                }
                // The client gets the end with the last bytes; the server doesn't poll again.
                if this.is_end_stream() {
                    this.flight.land(ChatEnd::Completed);
                }
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if this.gather()? || !matches!(this.pause, Pause::None) || !this.is_over() {
                continue;
            }
            match this.script.end {
                End::Clean => {
                    this.flight.land(ChatEnd::Completed);
                    return Poll::Ready(None);
                }
                End::Hang => return Poll::Pending,
                End::Cut | End::Reset if !this.ended => {
                    this.ended = true;
                    this.sleep_for(BEFORE_CUT);
                }
                End::Cut | End::Reset => {
                    this.flight.land(ChatEnd::Cut);
                    if this.script.end == End::Reset {
                        this.connection.reset_on_close();
                    }
                    return Poll::Ready(Some(Err(io::Error::other("the scenario cuts the stream"))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.script.end == End::Clean && self.is_over() && matches!(self.pause, Pause::None | Pause::Flush)
    }

    fn size_hint(&self) -> SizeHint {
        self.script.length.map_or_else(SizeHint::default, |length| SizeHint::with_exact(length - self.sent))
    }
}
