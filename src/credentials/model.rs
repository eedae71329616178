//! The decisions about tokens, in random orders: refreshes, writes, outages, adoptions, restarts, a second process.
//!
//! A small world around the production code ([`Credential`], [`WaitingTokens`], [`UnsavedToken`], the journal's text): an
//! upstream whose refresh tokens work once, a store that may take no writes or be away, whose replies are lost and whose writes
//! land late, two processes of which each may die and come back, and other programs that edit the record, refresh, or
//! log in again. Each seed is one order of events. At every moment some process, its journal or the store must know the
//! account's last token. When the trouble is over, the token must lie in the store and in every process.
//!
//! The model can fail. Remember only four spent tokens and not the record that ours grew out of: seed 2721 refreshes
//! with a dead token. Keep only the last spent token beside an unsaved one: seed 1488 leaves a process behind. Forget
//! the token that an adoption replaced: seed 0 loses the login.

use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::{Cause, MOST_TOKENS, Order};
use crate::policy::credential::Credential;
use crate::policy::waiting::{Generation, WaitingTokens};
use crate::proto::kiro::token::{Grant, Refusal};
use crate::proto::record::{self, Entry, Token};
use crate::secret::Secret;
use crate::store::{Cas, OnRecord, Saved, StoreError, TokenKey, UnsavedToken, journal};

/// Orders of events in a run of the test.
const ORDERS: u64 = 100_000;
/// Events in one order, before the trouble ends.
const EVENTS: u32 = 40;
const ACCOUNT: &str = "a";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Well,
    /// Reads go on, writes are refused.
    NoWrites,
    Away,
}

/// The last token is lost without a fault: the process that knew it was killed and had no journal.
struct Excused;

struct World {
    rng: fastrand::Rng,
    now: Timestamp,
    /// The number of the one refresh token that works.
    live: u64,
    calls: u64,
    dead: u64,
    mode: Mode,
    record: Bytes,
    /// The refresh token in it.
    lies: Option<Secret>,
    before: Vec<Bytes>,
    /// Writes whose replies were lost and that will land.
    late: Vec<(Bytes, Bytes)>,
    lock: Option<usize>,
    processes: [Process; 2],
    /// There is one process.
    alone: bool,
    /// Whether a refresh with a dead token is excused: a second process may be behind, or another program has
    /// refreshed.
    blurred: bool,
    rolled_back: bool,
    story: Vec<String>,
    tells: bool,
}

#[derive(Default)]
struct Process {
    alive: bool,
    journals: bool,
    /// Its journal's content while it is dead.
    disk: Vec<String>,
    held: Option<Credential>,
    waiting: WaitingTokens,
    snapshot: Option<Bytes>,
    flight: Option<Flight>,
    writing: Option<Saving>,
}

struct Flight {
    order: Order,
    refused: Vec<Secret>,
    call: Option<Calling>,
    saving: Option<Saving>,
}

/// The token that the next call spends, its record, and whether that was the store's own.
struct Calling {
    base: (Bytes, Token),
    used: Secret,
    known: bool,
}

struct Saving {
    unsaved: UnsavedToken,
    base: Bytes,
    generation: Generation,
}

fn text(access: u64, refresh: u64, end: Timestamp) -> Bytes {
    let end = end.as_millisecond();
    format!(r#"{{"accessToken":"a{access}","refreshToken":"r{refresh}","expiresAt":{end}}}"#).into()
}

fn name(live: u64) -> Secret {
    Secret::new(format!("r{live}"))
}

fn away() -> StoreError {
    StoreError::away("away")
}

impl World {
    fn new(seed: u64, tells: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        let record = text(0, 0, now);
        let (journals, alone) = (rng.bool(), rng.bool());
        let mut processes = [Process::default(), Process::default()];
        for process in &mut processes {
            process.journals = journals;
        }
        let mut world = Self {
            rng,
            now,
            live: 0,
            calls: 0,
            dead: 0,
            mode: Mode::Well,
            lies: Some(name(0)),
            record,
            before: Vec::new(),
            late: Vec::new(),
            lock: None,
            processes,
            alone,
            blurred: !alone,
            rolled_back: false,
            story: Vec::new(),
            tells,
        };
        world.start(0);
        if !alone {
            world.start(1);
        }
        world
    }

    fn tell(&mut self, event: impl FnOnce() -> String) {
        if self.tells {
            self.story.push(event());
        }
    }

    fn put(&mut self, record: Bytes) {
        self.lies = Token::parse(&record).unwrap().refresh_token;
        self.before.push(std::mem::replace(&mut self.record, record));
    }

    fn read(&self) -> Result<Bytes, StoreError> {
        if self.mode == Mode::Away { Err(away()) } else { Ok(self.record.clone()) }
    }

    fn cas(&mut self, old: &Bytes, new: &Bytes) -> Result<Cas, StoreError> {
        let lost = self.rng.u8(..8) == 0;
        match self.mode {
            Mode::NoWrites => Err(away()),
            Mode::Away => {
                if lost {
                    self.late.push((old.clone(), new.clone()));
                }
                Err(away())
            }
            Mode::Well if self.record != *old => Ok(Cas::Conflict(self.record.clone())),
            Mode::Well => {
                self.put(new.clone());
                if lost { Err(away()) } else { Ok(Cas::Written) }
            }
        }
    }

    fn lands(&mut self) {
        if self.mode == Mode::Well && !self.late.is_empty() {
            let (old, new) = self.late.swap_remove(self.rng.usize(..self.late.len()));
            if self.record == old {
                self.put(new);
                self.tell(|| "a late write lands".to_owned());
            }
        }
    }

    fn start(&mut self, p: usize) {
        let process = &mut self.processes[p];
        let disk = std::mem::take(&mut process.disk);
        let left_over = disk.iter().filter_map(|text| journal::read("s", text.as_bytes()).unwrap());
        process.waiting =
            if process.journals { WaitingTokens::with_journal(left_over.collect()) } else { WaitingTokens::default() };
        let held = Credential::new(TokenKey::of(ACCOUNT));
        process.held = Some(held);
        process.alive = true;
        self.tell(|| format!("{p} starts"));
    }

    fn kill(&mut self, p: usize) {
        let process = &mut self.processes[p];
        let kept = process.waiting.iter().filter(|_| process.journals);
        let disk = kept.filter_map(|(account, unsaved)| journal::text("s", account, unsaved)).collect();
        *process = Process { journals: process.journals, disk, ..Process::default() };
        if self.lock == Some(p) {
            self.lock = None;
        }
        self.tell(|| format!("{p} is killed"));
    }

    fn looks(&mut self, p: usize) {
        let read = self.read();
        let now = self.now;
        let process = &mut self.processes[p];
        // An old read is taken in after newer events.
        let Some(bytes) = process.snapshot.take() else {
            process.snapshot = read.ok();
            return;
        };
        let Some(held) = &mut process.held else { return };
        let observed = held.observe(Some((TokenKey::of(ACCOUNT), bytes)), now, &mut self.rng).unwrap();
        let mut write_back = observed.write_back;
        if let Some(left_over) = process.waiting.left_over(ACCOUNT) {
            match held.take_left_over(&left_over, &mut self.rng) {
                Some(unsaved) => write_back = Some(unsaved),
                None => process.waiting.forget(ACCOUNT, left_over),
            }
        }
        if let Some(unsaved) = write_back {
            process.waiting.keep(ACCOUNT, unsaved, instant());
        }
        let hand = hand(&self.processes[p]);
        self.tell(|| format!("{p} looks, holds {}", shown(&hand)));
    }

    /// The next step of a refresh, from the lock to the save.
    fn refreshes(&mut self, p: usize) {
        let (now, mode) = (self.now, self.mode);
        let Some(mut flight) = self.processes[p].flight.take() else {
            if self.processes[p].held.as_ref().is_none_or(|held| held.seen().is_none() || held.is_pausing(now)) {
                return;
            }
            match (mode, self.lock) {
                (Mode::Well, Some(_)) => return,
                (Mode::Well, None) => self.lock = Some(p),
                _ => {}
            }
            let held = self.processes[p].held.as_ref().and_then(|held| held.token().access_token.clone());
            let order = Order { cause: Cause::Background, held };
            self.processes[p].flight = Some(Flight { order, refused: Vec::new(), call: None, saving: None });
            return;
        };
        if let Some(saving) = flight.saving.take() {
            match self.saves(saving) {
                Ok(saving) => {
                    flight.saving = Some(saving);
                    self.processes[p].flight = Some(flight);
                }
                Err((generation, saved)) => {
                    let process = &mut self.processes[p];
                    process.waiting.settle(ACCOUNT, generation, saved.is_ok(), instant(), std::time::Duration::ZERO);
                    if let Some(held) = &mut process.held {
                        match saved {
                            Ok(Saved::Written(bytes)) => held.saved(bytes),
                            Ok(Saved::Rotated(bytes)) => held.replaced_by(bytes, &mut self.rng),
                            _ => {}
                        }
                    }
                    let hand = hand(&self.processes[p]);
                    self.tell(|| format!("{p} ends its refresh, holds {}", shown(&hand)));
                    self.unlock(p);
                }
            }
            return;
        }
        let Some(call) = flight.call.take() else {
            let read = self.read();
            let Some(held) = &mut self.processes[p].held else { return };
            let (bytes, known) = match (read, held.seen()) {
                (Ok(bytes), _) => (bytes, mode == Mode::Well),
                (Err(_), Some(seen)) => (seen.clone(), false),
                (Err(_), None) => return self.unlock(p),
            };
            let record = Token::parse(&bytes).unwrap();
            let is_met = |theirs: &Secret| flight.order.is_met_by(theirs);
            let adopts = known && flight.refused.is_empty();
            if adopts && held.adopt_refreshed(bytes.clone(), record.clone(), is_met, now, &mut self.rng) {
                self.tell(|| format!("{p} adopts"));
                return self.unlock(p);
            }
            let credential = held.to_spend(&record, &flight.refused);
            let Some(used) = credential.and_then(|credential| credential.refresh_token) else { return self.unlock(p) };
            flight.call = Some(Calling { base: (bytes, record), used, known });
            self.processes[p].flight = Some(flight);
            return;
        };
        self.calls += 1;
        let process = &mut self.processes[p];
        let Some(held) = &mut process.held else { return };
        if call.used == name(self.live) {
            self.live = self.calls;
            let grant = Grant {
                access_token: Secret::new(format!("a{}", self.live)),
                refresh_token: Some(name(self.live)),
                lifetime: std::time::Duration::from_secs(3600),
                profile_arn: None,
                idc_region: None,
            };
            let unsaved = held.granted(&call.used, call.base, grant, now, &mut self.rng);
            process.waiting.keep(ACCOUNT, unsaved.clone(), instant());
            let generation = process.waiting.take(ACCOUNT).map(|(_, generation)| generation).unwrap();
            flight.saving = Some(Saving { base: unsaved.base.clone(), unsaved, generation });
            process.flight = Some(flight);
            let (used, live) = (call.used, self.live);
            self.tell(|| format!("{p} spends {} for r{live}", used.expose()));
            return;
        }
        self.dead += 1;
        flight.refused.push(call.used.clone());
        self.tell(|| format!("{p} is refused with {}", call.used.expose()));
        let again = self.read();
        let Some(held) = &mut self.processes[p].held else { return };
        let bytes = again.ok().or(held.seen().cloned());
        let record = bytes.and_then(|bytes| Token::parse(&bytes).ok());
        if flight.refused.len() < MOST_TOKENS
            && record.is_some_and(|record| held.to_spend(&record, &flight.refused).is_some())
        {
            self.processes[p].flight = Some(flight);
            return;
        }
        let _ejected = call.known && held.refused(Refusal::Rejected, now);
        held.failed(now, &mut self.rng);
        self.unlock(p);
    }

    fn unlock(&mut self, p: usize) {
        if self.lock == Some(p) {
            self.lock = None;
        }
    }

    /// One try at a save, as [`crate::store::Store::save_token`] makes them. Ok: it goes on.
    fn saves(&mut self, mut saving: Saving) -> Result<Saving, (Generation, Result<Saved, StoreError>)> {
        let new = match saving.unsaved.on(saving.base.clone()) {
            OnRecord::Write(new) => new,
            OnRecord::Settled(saved) => return Err((saving.generation, Ok(saved))),
        };
        match self.cas(&saving.base.clone(), &new) {
            Ok(Cas::Written) => Err((saving.generation, Ok(Saved::Written(new)))),
            Ok(Cas::Absent) => Err((saving.generation, Ok(Saved::Absent))),
            Ok(Cas::Conflict(current)) => {
                saving.base = current;
                Ok(saving)
            }
            Err(error) => Err((saving.generation, Err(error))),
        }
    }

    fn writes(&mut self, p: usize) {
        let process = &mut self.processes[p];
        let Some(saving) = process.writing.take() else {
            if process.waiting.dues().next().is_some() {
                let taken = process.waiting.take(ACCOUNT);
                process.writing =
                    taken.map(|(unsaved, generation)| Saving { base: unsaved.base.clone(), unsaved, generation });
            }
            return;
        };
        match self.saves(saving) {
            Ok(saving) => self.processes[p].writing = Some(saving),
            Err((generation, saved)) => {
                let waiting = &mut self.processes[p].waiting;
                waiting.settle(ACCOUNT, generation, saved.is_ok(), instant(), std::time::Duration::ZERO);
                let lies = self.lies();
                self.tell(|| format!("{p}'s writer: {saved:?}, the store has {}", shown(&lies)));
            }
        }
    }

    fn lies(&self) -> Option<Secret> {
        self.lies.clone()
    }

    /// Changes of the record by other programs and people.
    fn meddles(&mut self) {
        if self.mode != Mode::Well {
            return;
        }
        let is_live = self.lies() == Some(name(self.live));
        let in_hand = self.processes.iter().any(|process| hand(process) == Some(name(self.live)));
        let holds = |process: &Process| !process.alive || hand(process) == Some(name(self.live));
        let all_hold = in_hand && self.processes.iter().all(holds);
        match self.rng.u8(..5) {
            0 => {
                let region = format!("r-{}", self.rng.u8(..3));
                if let Ok(Some(edited)) = record::patch(&self.record, &[Entry::Region(region)]) {
                    self.put(edited.into());
                    self.tell(|| "somebody edits the region".to_owned());
                }
            }
            // Another program's refresh.
            1 if is_live => {
                self.calls += 1;
                self.live = self.calls;
                self.blurred = true;
                let end = self.now + SignedDuration::from_hours(1);
                self.put(text(self.live, self.live, end));
                self.tell(|| "another program refreshes".to_owned());
            }
            // Another program's refresh that brings no refresh token, and drops the one that all processes know (R46).
            2 if is_live && all_hold => {
                let end = self.now + SignedDuration::from_hours(1);
                let end = end.as_millisecond();
                let dropped = format!(r#"{{"accessToken":"b{end}","expiresAt":{end}}}"#);
                self.put(dropped.into());
                self.blurred = true;
                self.tell(|| "another program drops the refresh token".to_owned());
            }
            // A person logs in again: the old tokens are dead.
            3 if self.rng.u8(..4) == 0 => {
                self.calls += 1;
                self.live = self.calls;
                self.blurred = true;
                let end = self.now + SignedDuration::from_hours(1);
                self.put(text(self.live, self.live, end));
                self.tell(|| "a person logs in again".to_owned());
            }
            // A failover loses the last second.
            4 if in_hand && !self.rolled_back && self.rng.u8(..4) == 0 => {
                if let Some(earlier) = self.before.pop() {
                    self.put(earlier);
                    (self.rolled_back, self.blurred) = (true, true);
                    let lies = self.lies();
                    self.tell(|| format!("the store is back at {}", shown(&lies)));
                }
            }
            _ => {}
        }
    }

    fn goes_on(&mut self) -> Result<(), Excused> {
        self.now += SignedDuration::from_secs(self.rng.i64(0..30));
        let p = if self.alone { 0 } else { usize::from(self.rng.bool()) };
        match self.rng.u8(..32) {
            0 => {
                self.mode = [Mode::Well, Mode::Well, Mode::NoWrites, Mode::Away][self.rng.usize(..4)];
                let mode = self.mode;
                self.tell(|| format!("{mode:?}"));
            }
            1 if self.rng.bool() => {
                if self.processes[p].alive {
                    self.kill(p);
                    if !self.is_known() {
                        return Err(Excused);
                    }
                } else {
                    self.start(p);
                }
            }
            // A lock frees itself.
            2 => self.lock = self.lock.filter(|_| self.rng.u8(..4) > 0),
            3 => self.meddles(),
            4 => self.lands(),
            _ if !self.processes[p].alive => {}
            5..12 => self.looks(p),
            12..18 => self.writes(p),
            _ => self.refreshes(p),
        }
        Ok(())
    }

    /// Whether a process, a journal or the store knows the token that works.
    fn is_known(&self) -> bool {
        let live = name(self.live);
        let is_live = |unsaved: &UnsavedToken| unsaved.refresh_token() == Some(&live);
        let on_disk =
            |text: &String| journal::read("s", text.as_bytes()).unwrap().is_some_and(|(_, kept)| is_live(&kept));
        let knows = |process: &Process| {
            process.held.as_ref().is_some_and(|held| {
                held.token().refresh_token.as_ref() == Some(&live) || held.before().contains(&live)
            }) || process.waiting.iter().any(|(_, unsaved)| is_live(unsaved))
                // A journal entry finds its record by the token that ours grew out of. A store that fell back further
                // has another.
                || !self.rolled_back && process.disk.iter().any(on_disk)
        };
        self.lies.as_ref() == Some(&live) || self.processes.iter().any(knows)
    }

    fn finishes(&mut self, p: usize) {
        while self.processes[p].flight.is_some() {
            self.refreshes(p);
        }
        while self.processes[p].writing.is_some() || self.processes[p].waiting.len() > 0 {
            self.writes(p);
        }
    }

    /// A fresh snapshot.
    fn sees(&mut self, p: usize) {
        self.processes[p].snapshot = None;
        self.looks(p);
        self.looks(p);
        self.finishes(p);
    }

    /// The trouble is over: checks what must hold then.
    fn ends(&mut self) {
        self.tell(|| "the trouble is over".to_owned());
        self.mode = Mode::Well;
        self.lock = None;
        while !self.late.is_empty() {
            self.lands();
        }
        for p in 0..2 {
            if !self.processes[p].alive {
                self.start(p);
            }
        }
        for p in 0..2 {
            self.now += SignedDuration::from_secs(61);
            self.finishes(p);
            self.sees(p);
            // One whole refresh of each process.
            self.refreshes(p);
            self.finishes(p);
        }
        let dead = self.dead;
        let live = name(self.live);
        for p in 0..2 {
            self.sees(p);
            assert_eq!(hand(&self.processes[p]), Some(live.clone()), "process {p} holds another than the last token");
            assert_eq!(self.processes[p].waiting.len(), 0, "process {p} still has something to save");
        }
        assert_eq!(self.lies(), Some(live), "the store holds another than the last token");
        assert_eq!(self.dead, dead);
    }
}

fn shown(token: &Option<Secret>) -> &str {
    token.as_ref().map_or("nothing", Secret::expose)
}

fn hand(process: &Process) -> Option<Secret> {
    process.held.as_ref().and_then(|held| held.token().refresh_token.clone())
}

/// Any moment: nothing here depends on it.
fn instant() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(|| tokio::time::Instant::now().into_std())
}

/// One order of events. None: excused. Panics when a login is lost.
fn tries(world: &mut World) -> Option<u64> {
    for _ in 0..EVENTS {
        if world.goes_on().is_err() {
            return None;
        }
        assert!(world.is_known(), "nobody knows the last token any more");
        assert!(world.blurred || world.dead == 0, "a refresh with a dead token");
    }
    world.ends();
    Some(world.calls)
}

#[test]
fn the_last_token_is_never_lost_while_one_process_lives_r48_r51() {
    if let Some(seed) = env::var("KIRO_SEED").ok().and_then(|seed| seed.parse().ok()) {
        let mut world = World::new(seed, true);
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tries(&mut world)));
        for event in &world.story {
            println!("{event}");
        }
        assert!(tried.is_ok(), "seed {seed}");
        return;
    }
    let (next, excused, calls) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= ORDERS {
                        return;
                    }
                    let tried = std::panic::catch_unwind(|| tries(&mut World::new(seed, false)));
                    match tried {
                        Ok(Some(made)) => calls.fetch_add(made, Ordering::Relaxed),
                        Ok(None) => excused.fetch_add(1, Ordering::Relaxed),
                        Err(_) => {
                            next.store(ORDERS, Ordering::Relaxed);
                            panic!(
                                "to see it again: KIRO_SEED={seed} cargo test --lib --features server \
                                 the_last_token_is_never_lost -- --nocapture"
                            );
                        }
                    };
                }
            });
        }
    });
    let (excused, calls) = (excused.into_inner(), calls.into_inner());
    println!("{ORDERS} orders of events, {calls} refreshes, {excused} ended with a killed process");
    assert!(excused < ORDERS / 5, "{excused} killed processes had the only copy");
    assert!(calls > 3 * ORDERS, "{calls} refreshes");
}
