//! Keys and values that all processes see: `c10d::TCPStore` (cpp/store.cpp).

use std::time::{Duration, Instant};

use cxx::{CxxVector, UniquePtr};

use super::Environment;
use crate::error::Result;

#[cxx::bridge(namespace = "jitquant")]
mod bridge {
    unsafe extern "C++" {
        include!("store.h");

        type Store;
        fn store_open(address: &str, port: u16, serves: bool, milliseconds: u64) -> Result<UniquePtr<Store>>;
        fn store_clone(store: &Store) -> Result<UniquePtr<Store>>;
        fn store_set(store: &Store, key: &str, value: &[u8]) -> Result<()>;
        fn store_has(store: &Store, key: &str) -> Result<bool>;
        fn store_get(store: &Store, key: &str) -> Result<UniquePtr<CxxVector<u8>>>;
        fn store_add(store: &Store, key: &str, amount: i64) -> Result<i64>;
        fn store_delete(store: &Store, key: &str) -> Result<()>;
    }
}

/// Between two looks for a key.
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// A connection to the store. Each call but [`Store::wait`] is answered at once.
pub(super) struct Store(UniquePtr<bridge::Store>);

// SAFETY: a TCPStore client is an object of its own with a socket and a mutex around each operation; nothing of it belongs
// to a thread.
unsafe impl Send for Store {}

/// A value, where libtorch put it.
pub(super) struct Bytes(UniquePtr<CxxVector<u8>>);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl Store {
    /// Serves the store at the environment's port and connects to it.
    pub fn serve(at: &Environment) -> Result<Self> {
        Ok(Self(bridge::store_open(&at.address, at.port, true, at.join.as_millis() as u64)?))
    }

    /// Connects to the store at the environment's address.
    pub fn connect(at: &Environment) -> Result<Self> {
        Ok(Self(bridge::store_open(&at.address, at.port, false, at.join.as_millis() as u64)?))
    }

    /// A connection for another thread.
    pub fn another(&self) -> Result<Self> {
        Ok(Self(bridge::store_clone(&self.0)?))
    }

    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        Ok(bridge::store_set(&self.0, key, value)?)
    }

    /// Waits for a key; `false` where it did not come in time. It asks again and again: TCPStore's own wait warns on stderr
    /// whenever its time is up.
    pub fn wait(&self, key: &str, limit: Duration) -> Result<bool> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(50);
        while !self.has(key)? {
            if start.elapsed() >= limit {
                return Ok(false);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(true)
    }

    pub fn has(&self, key: &str) -> Result<bool> {
        Ok(bridge::store_has(&self.0, key)?)
    }

    /// The value of a key that is there.
    pub fn get(&self, key: &str) -> Result<Bytes> {
        Ok(Bytes(bridge::store_get(&self.0, key)?))
    }

    /// Adds to a number, 0 at first; the sum.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64> {
        Ok(bridge::store_add(&self.0, key, amount)?)
    }

    pub fn delete(&self, key: &str) -> Result<()> {
        Ok(bridge::store_delete(&self.0, key)?)
    }
}
