//! The processes that work together: joining, waiting for each other, noticing that one has ended, leaving.

use std::cell::{Cell, RefCell};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::Environment;
use super::life::{Heartbeat, LastSign, SILENCE, clock, now};
use super::store::{Bytes, Store};
use crate::error::{Context, Error, Result};

/// How long a process waits before it looks whether the others are alive.
const LOOK: Duration = Duration::from_millis(500);
/// How long a process waits for one that is alive (c10d's own limit).
const PATIENCE: Duration = Duration::from_secs(1800);

/// This process among those that it works with.
///
/// Every process makes the same calls in the same order. One that has ended is noticed by the others within ten seconds of
/// waiting for it: their calls fail with an error that names its rank. Dropping a group leaves it; process 0 then stays until the
/// others have left, since it serves what they read.
pub struct Group {
    at: Environment,
    store: Store,
    /// What the keys of this run begin with.
    prefix: String,
    /// How many collectives there were.
    pub(super) steps: Cell<u64>,
    /// What this process wrote in the last one: it is deleted once everybody has read it.
    pub(super) written: RefCell<Vec<String>>,
    signs: Vec<LastSign>,
    /// Whether the failure of this or another process is known.
    failed: Cell<bool>,
    heartbeat: Option<Heartbeat>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group {{ rank: {}, world: {} }}", self.at.rank, self.at.world)
    }
}

impl Group {
    /// The group that `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` tell of, once all its processes have joined;
    /// `None` where this process is on its own.
    ///
    /// # Errors
    /// Where the variables do not fit together, the address cannot be reached, or a process does not come in time.
    pub fn from_environment() -> Result<Option<Self>> {
        Environment::read()?.map(Self::join).transpose()
    }

    /// Joins the others.
    ///
    /// # Errors
    /// Those of [`Group::from_environment`].
    pub fn join(at: Environment) -> Result<Self> {
        let until = Instant::now() + at.join;
        loop {
            match Self::join_once(&at, until) {
                // The store of a run before this one, which is just ending.
                Err(Error::Torch(_)) if at.rank > 0 && Instant::now() < until => std::thread::sleep(LOOK),
                joined => return joined.context(|| format!("joining as rank {} of {}", at.rank, at.world)),
            }
        }
    }

    fn join_once(at: &Environment, until: Instant) -> Result<Self> {
        let serves = at.rank == 0 && !at.is_served;
        let store = match serves {
            true => Store::serve(at).context(|| format!("serving the store at {}:{}", at.address, at.port))?,
            false => {
                reach(at, until)?;
                Store::connect(at)?
            }
        };
        let session = format!("jitquant/{}/session", at.attempt);
        if at.rank == 0 {
            store.set(&session, format!("{:x}-{:x}", now(), std::process::id()).as_bytes())?;
        }
        let left = || until.saturating_duration_since(Instant::now());
        let missing = |rank: usize| {
            let (world, seconds) = (at.world, at.join.as_secs());
            Error::invalid(format!("rank {rank} of {world} did not join within {seconds} s (JITQUANT_JOIN_SECONDS)"))
        };
        if !store.wait(&session, left())? {
            return Err(missing(0));
        }
        let prefix = format!("jitquant/{}/{}", at.attempt, String::from_utf8_lossy(store.get(&session)?.as_ref()));
        if store.add(&format!("{prefix}/count/{}", at.rank), 1)? > 1 {
            return Err(Error::invalid(format!("there is another process with RANK={}", at.rank)));
        }
        let heartbeat = Heartbeat::start(store.another()?, format!("{prefix}/beat/{}", at.rank));
        store.set(&format!("{prefix}/here/{}", at.rank), at.world.to_string().as_bytes())?;
        for rank in 0..at.world {
            let key = format!("{prefix}/here/{rank}");
            if !store.wait(&key, left())? {
                return Err(missing(rank));
            }
            let theirs = store.get(&key)?;
            if theirs.as_ref() != at.world.to_string().as_bytes() {
                return Err(Error::invalid(format!(
                    "WORLD_SIZE is {} here and {} for rank {rank}",
                    at.world,
                    String::from_utf8_lossy(theirs.as_ref())
                )));
            }
        }
        Ok(Self {
            signs: (0..at.world).map(|_| LastSign::new()).collect(),
            at: at.clone(),
            store,
            prefix,
            steps: Cell::new(0),
            written: RefCell::default(),
            failed: Cell::new(false),
            heartbeat: Some(heartbeat),
        })
    }

    /// This process's number.
    pub fn rank(&self) -> usize {
        self.at.rank
    }

    /// How many processes there are.
    pub fn world(&self) -> usize {
        self.at.world
    }

    /// Tells the others that this process gives up, and why: their next call that waits for it fails with this.
    pub fn abandon(&self, why: &str) {
        if !self.failed.replace(true) {
            let message = format!("rank {} failed: {why}", self.at.rank);
            if self.store.add(&self.key("failures"), 1).is_ok_and(|count| count == 1) {
                self.store.set(&self.key("failed"), message.as_bytes()).ok();
            }
        }
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    pub(super) fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        self.answered(self.store.set(key, value))
    }

    pub(super) fn delete(&self, key: &str) -> Result<()> {
        self.answered(self.store.delete(key))
    }

    /// The value that `peer` writes under `key`, as soon as it is there.
    pub(super) fn read(&self, peer: usize, key: &str) -> Result<Bytes> {
        let start = Instant::now();
        while !self.answered(self.store.wait(key, LOOK))? {
            self.check_others()?;
            if start.elapsed() > PATIENCE {
                self.failed.set(true);
                return Err(Error::invalid(format!(
                    "rank {peer} is alive, but did not get as far as rank {} in {} min",
                    self.at.rank,
                    PATIENCE.as_secs() / 60
                )));
            }
        }
        self.answered(self.store.get(key))
    }

    /// A call of the store fails where who serves it has ended.
    fn answered<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|e| {
            self.failed.set(true);
            let server = if self.at.is_served { "the launcher" } else { "rank 0" };
            let (address, port, text) = (&self.at.address, self.at.port, e.to_string());
            Error::invalid(format!(
                "{server}, which serves the store at {address}:{port}, has ended (noticed at {}): {}",
                clock(now()),
                text.lines().next().unwrap_or_default()
            ))
        })
    }

    /// Whether the others are alive and none has failed.
    fn check_others(&self) -> Result<()> {
        let failed = self.key("failed");
        if self.answered(self.store.has(&failed))? {
            self.failed.set(true);
            let why = self.answered(self.store.get(&failed))?;
            return Err(Error::invalid(String::from_utf8_lossy(why.as_ref()).into_owned()));
        }
        for rank in (0..self.at.world).filter(|rank| *rank != self.at.rank) {
            if self.answered(self.store.has(&self.key(&format!("left/{rank}"))))? {
                self.failed.set(true);
                return Err(Error::invalid(format!("rank {rank} has left, and rank {} waits for it", self.at.rank)));
            }
            self.answered(self.listen(rank))?;
            let sign = &self.signs[rank];
            if sign.silence() > SILENCE {
                let why = format!(
                    "rank {rank} of {} has ended: no sign of life since {} ({} s)",
                    self.at.world,
                    sign.time(),
                    sign.silence().as_secs()
                );
                self.abandon(&why);
                return Err(Error::invalid(why));
            }
        }
        Ok(())
    }

    fn listen(&self, rank: usize) -> Result<()> {
        let beat = self.key(&format!("beat/{rank}"));
        if self.store.has(&beat)? {
            let written = self.store.get(&beat)?;
            self.signs[rank].update(written.as_ref().try_into().map_or(0, u64::from_le_bytes));
        }
        Ok(())
    }

    /// Whether `rank` has left or ended.
    fn is_gone(&self, rank: usize) -> Result<bool> {
        self.listen(rank)?;
        Ok(self.signs[rank].silence() > SILENCE || self.store.has(&self.key(&format!("left/{rank}")))?)
    }

    fn leave(&self) -> Result<()> {
        // What was written last may not be read by all yet: process 0 deletes it when they have left.
        let unread = self.written.take().join("\n");
        let mark = |rank: usize| self.key(&format!("left/{rank}"));
        self.store.set(&mark(self.at.rank), format!("left\n{unread}").as_bytes())?;
        if self.at.rank > 0 {
            return Ok(());
        }
        for rank in 1..self.at.world {
            while !self.is_gone(rank)? {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        if self.at.is_served {
            // The launcher's store lives on: the next run must not take this one's session for its own.
            self.store.delete(&format!("jitquant/{}/session", self.at.attempt))?;
            for rank in 0..self.at.world {
                if self.store.has(&mark(rank))? {
                    let left = self.store.get(&mark(rank))?;
                    for key in String::from_utf8_lossy(left.as_ref()).lines().skip(1) {
                        self.store.delete(key)?;
                    }
                }
                for name in ["count", "here", "beat", "left"] {
                    self.store.delete(&self.key(&format!("{name}/{rank}")))?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Nothing is left to be told where the store is gone.
        self.leave().ok();
        self.heartbeat = None;
    }
}

/// Waits until somebody listens at the address: processes start in any order, and a name may take a while to be known.
fn reach(at: &Environment, until: Instant) -> Result<()> {
    let place = format!("{}:{}", at.address, at.port);
    loop {
        let attempt = (at.address.as_str(), at.port).to_socket_addrs().and_then(|found| {
            let mut last = std::io::Error::other("the name has no address");
            for address in found {
                match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
                    Ok(_) => return Ok(()),
                    Err(e) => last = e,
                }
            }
            Err(last)
        });
        match attempt {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() >= until => {
                return Err(Error::invalid(format!(
                    "nobody answers at MASTER_ADDR:MASTER_PORT {place} for {} s ({e}): is rank 0 running there?",
                    at.join.as_secs()
                )));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
