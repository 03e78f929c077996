//! Runs a kernel on every ISA, with slices that lie against memory that cannot be touched: an access beyond one of
//! them kills the test.
#![allow(dead_code)]

use std::fmt::Debug;
use std::ops::{Deref, DerefMut};

use jitquant_kernels::Isa;
use proptest::prelude::ProptestConfig;

/// Where a slice meets the forbidden page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Before its first element.
    Start,
    /// After its last element.
    End,
}

/// One way to run a kernel: an ISA, and an edge for its slices.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    pub isa: Isa,
    pub edge: Edge,
}

impl Path {
    /// A copy of `values`.
    pub fn input<T: Plain>(self, values: &[T]) -> Guarded<T> {
        let mut copy = Guarded::new(self.edge, values.len());
        copy.copy_from_slice(values);
        copy
    }

    /// Elements that no kernel has written yet: every byte is 0xA5.
    pub fn output<T: Plain>(self, len: usize) -> Guarded<T> {
        Guarded::new(self.edge, len)
    }
}

/// Runs `f` on every ISA of this machine and both edges, and returns the result, which must not depend on either.
pub fn on_all_paths<R: PartialEq + Debug>(f: impl Fn(Path) -> R) -> R {
    let expected = f(Path { isa: Isa::Scalar, edge: Edge::End });
    for isa in Isa::available() {
        for edge in [Edge::Start, Edge::End] {
            let result = f(Path { isa, edge });
            assert!(result == expected, "{} differs from scalar ({edge:?})\n{result:?}\n{expected:?}", isa.name());
        }
    }
    expected
}

/// How many cases proptest tries: a few under Miri, which takes seconds for one.
pub fn cases() -> ProptestConfig {
    if cfg!(miri) {
        ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() }
    } else {
        ProptestConfig::default()
    }
}

/// Types that any bytes are a value of.
pub trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for i8 {}
impl Plain for i32 {}
impl Plain for i64 {}
impl Plain for u64 {}
impl Plain for f32 {}

/// A slice with a forbidden page at its edge. Miri, which watches every access itself, gets ordinary memory.
pub struct Guarded<T: Plain> {
    memory: memory::Memory,
    data: *mut T,
    len: usize,
}

impl<T: Plain> Guarded<T> {
    fn new(edge: Edge, len: usize) -> Self {
        let memory = memory::Memory::new(edge, len * size_of::<T>());
        Self { data: memory.start().cast(), memory, len }
    }
}

impl<T: Plain> Deref for Guarded<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `memory` holds `len` values from `data` on, aligned as pages are or `len` whole values before a
        // page's end, and initialized.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl<T: Plain> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

#[cfg(all(unix, not(miri)))]
mod memory {
    use super::Edge;

    /// Pages of which the first and the last are forbidden.
    pub struct Memory {
        map: *mut u8,
        map_len: usize,
        start: *mut u8,
    }

    impl Memory {
        pub fn new(edge: Edge, len: usize) -> Self {
            // SAFETY: sysconf has no preconditions.
            let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
            let inside = len.next_multiple_of(page).max(page);
            let map_len = inside + 2 * page;
            // SAFETY: a new private mapping, checked below; `protect` gets the pages in its middle.
            let map = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(std::ptr::null_mut(), map_len, libc::PROT_NONE, flags, -1, 0)
            };
            assert_ne!(map, libc::MAP_FAILED, "mmap");
            let map = map.cast::<u8>();
            // SAFETY: `inside` bytes from the second page on belong to the mapping and, once readable, to nobody else.
            unsafe {
                let first = map.add(page);
                assert_eq!(libc::mprotect(first.cast(), inside, libc::PROT_READ | libc::PROT_WRITE), 0, "mprotect");
                first.write_bytes(0xA5, inside);
                let start = if edge == Edge::Start { first } else { first.add(inside - len) };
                Self { map, map_len, start }
            }
        }

        pub fn start(&self) -> *mut u8 {
            self.start
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: the mapping is ours, and the slice that borrowed from it is gone.
            unsafe { libc::munmap(self.map.cast(), self.map_len) };
        }
    }
}

#[cfg(not(all(unix, not(miri))))]
mod memory {
    use super::Edge;

    /// Memory of exactly the length, aligned for every [`Plain`](super::Plain) type.
    pub struct Memory {
        start: *mut u8,
        layout: std::alloc::Layout,
    }

    impl Memory {
        pub fn new(_edge: Edge, len: usize) -> Self {
            let layout = std::alloc::Layout::from_size_align(len.max(1), 8).expect("a small layout");
            // SAFETY: the layout has a size, and the bytes are written before they are read.
            unsafe {
                let start = std::alloc::alloc(layout);
                assert!(!start.is_null(), "out of memory");
                start.write_bytes(0xA5, layout.size());
                Self { start, layout }
            }
        }

        pub fn start(&self) -> *mut u8 {
            self.start
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { std::alloc::dealloc(self.start, self.layout) };
        }
    }
}
