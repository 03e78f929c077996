//! Where buffers lie in one arena.

use crate::arena::ALIGNMENT;

/// Memory that is needed from one task to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// How much.
    pub bytes: usize,
    /// The first task that uses it.
    pub first: usize,
    /// The last one.
    pub last: usize,
}

impl Buffer {
    fn lives_with(&self, other: &Buffer) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// The offset of each buffer in an arena, and the arena's length: no two buffers that are needed at once overlap.
///
/// Greedy by size: the largest first, each in the smallest gap that is large enough between those that live with it. Pisarchyk
/// and Lee, "Efficient Memory Management for Deep Neural Net Inference" (2020), find it within some percent of the lower bound.
pub fn place(buffers: &[Buffer]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).filter(|index| buffers[*index].bytes > 0).collect();
    order.sort_by_key(|index| std::cmp::Reverse((buffers[*index].bytes, std::cmp::Reverse(*index))));
    let mut places = vec![0; buffers.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut arena = 0;
    for index in order {
        let bytes = buffers[index].bytes.next_multiple_of(ALIGNMENT);
        let neighbours = placed.iter().filter(|other| buffers[**other].lives_with(&buffers[index]));
        let mut taken: Vec<(usize, usize)> = neighbours
            .map(|other| (places[*other], places[*other] + buffers[*other].bytes.next_multiple_of(ALIGNMENT)))
            .collect();
        taken.sort_unstable();
        places[index] = gap(&taken, bytes);
        arena = arena.max(places[index] + bytes);
        placed.push(index);
    }
    (places, arena)
}

/// The start of the smallest gap of at least `bytes` between what is `taken`, or behind all of it.
fn gap(taken: &[(usize, usize)], bytes: usize) -> usize {
    let mut end = 0;
    let mut best: Option<(usize, usize)> = None;
    for (start, next) in taken {
        let free = start.saturating_sub(end);
        if free >= bytes && best.is_none_or(|(size, _)| free < size) {
            best = Some((free, end));
        }
        end = end.max(*next);
    }
    best.map_or(end, |(_, start)| start)
}
