//! Places in the arena: no two buffers that are needed at once overlap.

use jitquant_runtime::{Buffer, place};
use proptest::prelude::*;

fn buffers() -> impl Strategy<Value = Vec<Buffer>> {
    let buffer = (0usize..5000, 0usize..40, 0usize..40).prop_map(|(bytes, a, b)| Buffer {
        bytes,
        first: a.min(b),
        last: a.max(b),
    });
    proptest::collection::vec(buffer, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn buffers_that_live_at_once_lie_apart(buffers in buffers()) {
        let (places, arena) = place(&buffers);
        for (i, a) in buffers.iter().enumerate() {
            prop_assert!(places[i] + a.bytes <= arena);
            prop_assert_eq!(places[i] % 64, 0);
            for (j, b) in buffers.iter().enumerate().skip(i + 1) {
                let at_once = a.first <= b.last && b.first <= a.last;
                let apart = places[i] + a.bytes <= places[j] || places[j] + b.bytes <= places[i];
                prop_assert!(!at_once || apart || a.bytes == 0 || b.bytes == 0, "{a:?} at {}, {b:?} at {}", places[i], places[j]);
            }
        }
        // Not less than what is needed at once, and not more than everything.
        let all = |buffers: &mut dyn Iterator<Item = &Buffer>| buffers.map(|b| b.bytes.next_multiple_of(64)).sum::<usize>();
        let peak = (0..40).map(|t| all(&mut buffers.iter().filter(|b| b.first <= t && t <= b.last))).max().unwrap_or(0);
        prop_assert!(arena >= peak && arena <= all(&mut buffers.iter()));
    }
}

#[test]
fn a_chain_needs_two_buffers() {
    let chain: Vec<_> = (0..20).map(|step| Buffer { bytes: 640, first: step, last: step + 1 }).collect();
    assert_eq!(place(&chain).1, 2 * 640);
}
