//! What the processes of a group do together. Bytes go through the store; sums are taken in the order of the ranks, so that
//! every process has the same bits.

use std::collections::BTreeMap;
use std::ops::{AddAssign, Range};

use super::Group;
use super::wire::{Reader, Writer};
use crate::error::{Error, Result};
use crate::ir::Element;

/// The longest value that the store is given; its limit is 8 MiB.
const PIECE: usize = 4 << 20;
/// Up to so many bytes, everybody adds all; above, everybody adds a part.
const SMALL: usize = 64 << 10;

impl Group {
    /// What each process gave, in the order of the ranks.
    ///
    /// # Errors
    /// Where another process has ended or failed; the message names it.
    pub fn all_gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let step = self.begin();
        let mut written = Vec::new();
        self.publish(&step, "all", mine, &mut written)?;
        let get = |rank: usize| if rank == self.rank() { Ok(mine.to_vec()) } else { self.fetch(&step, rank, "all") };
        let all = (0..self.world()).map(get).collect::<Result<_>>()?;
        self.end(written)?;
        Ok(all)
    }

    /// Makes each value the sum of those of all processes.
    ///
    /// Up to 64 KiB everybody reads all values. Beyond, each process adds a part of them and the others read its sums: each
    /// sends and receives about twice the values, however many processes there are.
    ///
    /// # Errors
    /// Those of [`Group::all_gather`]; and where another process has a different number of values.
    pub fn all_reduce<T: Element + AddAssign>(&self, values: &mut [T]) -> Result<()> {
        if size_of_val(values) <= SMALL {
            let all = self.all_gather(bytemuck::cast_slice(values))?;
            return self.sum(all.into_iter().map(Ok), values);
        }
        let (world, rank, count) = (self.world(), self.rank(), values.len());
        let part = |rank: usize| -> Range<usize> { count * rank / world..count * (rank + 1) / world };

        let step = self.begin();
        let mut written = Vec::new();
        for peer in (0..world).filter(|peer| *peer != rank) {
            self.publish(&step, &peer.to_string(), bytemuck::cast_slice(&values[part(peer)]), &mut written)?;
        }
        let mine = bytemuck::cast_slice(&values[part(rank)]).to_vec();
        let of = |peer: usize| if peer == rank { Ok(mine.clone()) } else { self.fetch(&step, peer, &rank.to_string()) };
        self.sum((0..world).map(of), &mut values[part(rank)])?;
        self.end(written)?;

        let sums = self.all_gather(bytemuck::cast_slice(&values[part(rank)]))?;
        for (peer, sums) in sums.iter().enumerate() {
            self.check_length(peer, sums.len(), size_of_val(&values[part(peer)]))?;
            values[part(peer)].copy_from_slice(&bytemuck::pod_collect_to_vec(sums));
        }
        Ok(())
    }

    /// Compares what has to be the same in all processes: names and values. An empty value stands for one that is not known,
    /// and is not compared.
    ///
    /// # Errors
    /// Where a value differs: the message has its name, both values and the ranks; and those of [`Group::all_gather`].
    pub fn agree(&self, facts: &[(&str, String)]) -> Result<()> {
        let mut writer = Writer::default();
        facts.iter().for_each(|(name, value)| [*name, value].into_iter().for_each(|text| writer.text(text)));
        let all = self.all_gather(&writer.bytes)?;
        let of_rank = |bytes| {
            std::iter::from_fn({
                let mut reader = Reader { bytes };
                move || Some((reader.text()?.to_owned(), reader.text()?.to_owned()))
            })
        };
        let mut known: BTreeMap<String, (usize, String)> = BTreeMap::new();
        for (rank, bytes) in all.iter().enumerate() {
            for (name, value) in of_rank(bytes).filter(|(_, value)| !value.is_empty()) {
                let (first, theirs) = known.entry(name.clone()).or_insert_with(|| (rank, value.clone()));
                if *theirs != value {
                    return Err(Error::invalid(format!(
                        "the processes have to agree on {name}: it is {theirs} for rank {first} and {value} for rank {rank}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// What process 0 gave.
    ///
    /// # Errors
    /// Those of [`Group::all_gather`].
    pub fn broadcast(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mine = if self.rank() == 0 { bytes } else { &[] };
        Ok(self.all_gather(mine)?.swap_remove(0))
    }

    /// Waits until every process is here.
    ///
    /// # Errors
    /// Those of [`Group::all_gather`].
    pub fn barrier(&self) -> Result<()> {
        self.all_gather(&[]).map(|_| ())
    }

    fn sum<T: Element + AddAssign>(&self, all: impl Iterator<Item = Result<Vec<u8>>>, values: &mut [T]) -> Result<()> {
        for (rank, bytes) in all.enumerate() {
            let bytes = bytes?;
            self.check_length(rank, bytes.len(), size_of_val(values))?;
            let theirs: Vec<T> = bytemuck::pod_collect_to_vec(&bytes);
            match rank {
                0 => values.copy_from_slice(&theirs),
                _ => values.iter_mut().zip(theirs).for_each(|(sum, value)| *sum += value),
            }
        }
        Ok(())
    }

    fn check_length(&self, rank: usize, bytes: usize, here: usize) -> Result<()> {
        if bytes == here {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "rank {rank} has {bytes} bytes where rank {} has {here}: all processes need the same model, data and options",
            self.rank()
        )))
    }

    fn begin(&self) -> String {
        self.steps.set(self.steps.get() + 1);
        self.key(&self.steps.get().to_string())
    }

    /// Ends a step in which this process has read something of every other: all of them have read what it wrote in the step
    /// before, which can go.
    fn end(&self, written: Vec<String>) -> Result<()> {
        self.written.replace(written).iter().try_for_each(|key| self.delete(key))
    }

    /// Writes a value in pieces; the first one begins with the length of all (8 bytes, little-endian).
    fn publish(&self, step: &str, name: &str, bytes: &[u8], written: &mut Vec<String>) -> Result<()> {
        let (head, rest) = bytes.split_at(bytes.len().min(PIECE));
        let first = [&(bytes.len() as u64).to_le_bytes(), head].concat();
        for (number, piece) in std::iter::once(&first[..]).chain(rest.chunks(PIECE)).enumerate() {
            let key = piece_key(step, self.rank(), name, number);
            self.set(&key, piece)?;
            written.push(key);
        }
        Ok(())
    }

    fn fetch(&self, step: &str, peer: usize, name: &str) -> Result<Vec<u8>> {
        let first = self.read(peer, &piece_key(step, peer, name, 0))?;
        let Some((length, head)) = first.as_ref().split_first_chunk() else {
            return Err(Error::invalid(format!("rank {peer} speaks another version of jitquant")));
        };
        let length = u64::from_le_bytes(*length) as usize;
        let mut bytes = head.to_vec();
        let mut number = 1;
        while bytes.len() < length {
            bytes.extend_from_slice(self.read(peer, &piece_key(step, peer, name, number))?.as_ref());
            number += 1;
        }
        Ok(bytes)
    }
}

fn piece_key(step: &str, rank: usize, name: &str, number: usize) -> String {
    format!("{step}/{rank}/{name}/{number}")
}
