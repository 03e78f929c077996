//! Which processes are alive: each writes the time into the store twice a second, from a thread of its own.

use std::cell::Cell;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::store::Store;

/// How often a process writes.
const BEAT: Duration = Duration::from_millis(500);
/// A process that wrote nothing for so long has ended.
pub(super) const SILENCE: Duration = Duration::from_secs(8);

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// The time of day of `milliseconds` since 1970, for people.
pub(super) fn clock(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000 % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// The thread that writes, until it is dropped.
pub(super) struct Heartbeat {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Writes `key` through `store`.
    pub fn start(store: Store, key: String) -> Self {
        let (stop, stopped) = channel::<()>();
        let beat = move || {
            // Where the store is gone, whoever works with it finds out.
            while store.set(&key, &now().to_le_bytes()).is_ok() {
                if !matches!(stopped.recv_timeout(BEAT), Err(RecvTimeoutError::Timeout)) {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("jitquant-heartbeat".into()).spawn(beat).ok();
        Self { stop: Some(stop), thread }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What was last read of a process's heartbeat.
pub(super) struct LastSign {
    written: Cell<u64>,
    read: Cell<Instant>,
}

impl LastSign {
    pub fn new() -> Self {
        Self { written: Cell::new(0), read: Cell::new(Instant::now()) }
    }

    /// Takes in what stands in the store. Times of different hosts are not compared: what counts is that it changes.
    pub fn update(&self, written: u64) {
        if self.written.replace(written) != written {
            self.read.set(Instant::now());
        }
    }

    /// For how long nothing changed.
    pub fn silence(&self) -> Duration {
        self.read.get().elapsed()
    }

    /// When the process last wrote, by its own clock.
    pub fn time(&self) -> String {
        clock(self.written.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day() {
        assert_eq!(clock(0), "00:00:00 UTC");
        assert_eq!(clock(1_764_083_489_999), "15:11:29 UTC");
    }

    #[test]
    fn a_sign_counts_where_it_changed() {
        let sign = LastSign::new();
        sign.update(5);
        std::thread::sleep(Duration::from_millis(20));
        sign.update(5);
        assert!(sign.silence() >= Duration::from_millis(20));
        sign.update(4);
        assert!(sign.silence() < Duration::from_millis(20));
    }
}
