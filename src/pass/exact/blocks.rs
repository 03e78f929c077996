//! Weights of convolutions with zeros in them, and without.

use crate::pass::op_table::Geometry;

/// The weight `[outputs, inputs of a group, kernel…]` of a layer whose groups are joined, `joined` at a time: each output's weights
/// stand at its own group's channels, zeros at the others'.
pub(super) fn widened(values: &[i8], sizes: &[i64], geometry: &Geometry, joined: i64) -> (Vec<i8>, Vec<i64>) {
    let own = (values.len() / geometry.outputs.max(1) as usize).max(1);
    let each = (geometry.outputs / geometry.groups).max(1) as usize;
    let joined = joined as usize;
    let mut wide = vec![0; values.len() * joined];
    for (output, weights) in values.chunks(own).enumerate() {
        let start = (output * joined + output / each % joined) * own;
        wide[start..start + own].copy_from_slice(weights);
    }
    let mut wide_sizes = sizes.to_vec();
    wide_sizes[1] *= joined as i64;
    (wide, wide_sizes)
}

/// The most outputs of an input channel that [`narrowed`] looks for.
const MOST_EACH: usize = 2;

/// The weight of the depthwise layer that [`widened`] gives this one: its sizes and values, where it is such a one.
pub(crate) fn narrowed<T: Copy + Default + PartialEq>(sizes: &[i64], values: &[T]) -> Option<(Vec<i64>, Vec<T>)> {
    let (outputs, size) = (*sizes.first()? as usize, *sizes.get(1)? as usize);
    if size < 2 || outputs % size != 0 || values.is_empty() {
        return None;
    }
    let taps = values.len() / outputs / size;
    let own = |output: usize, each: usize| (output * size + output / each % size) * taps;
    let is_only = |each: usize| {
        (0..outputs).all(|output| {
            let (start, all) = (own(output, each), output * size * taps..(output + 1) * size * taps);
            all.filter(|place| !(start..start + taps).contains(place)).all(|place| values[place] == T::default())
        })
    };
    let each = (1..=MOST_EACH).find(|each| outputs % (each * size) == 0 && is_only(*each))?;
    let narrow = (0..outputs).flat_map(|output| values[own(output, each)..][..taps].iter().copied()).collect();
    let mut narrow_sizes = sizes.to_vec();
    narrow_sizes[1] = 1;
    Some((narrow_sizes, narrow))
}

/// The weight `[inputs, outputs, 2, columns]` of a transposed layer with a row of zeros above and below.
pub(super) fn four_rows(values: &[i8], sizes: &[i64]) -> (Vec<i8>, Vec<i64>) {
    let columns = sizes[3] as usize;
    let zeros = vec![0; columns];
    let wide = values.chunks(2 * columns).flat_map(|rows| [&zeros[..], rows, &zeros[..]].concat()).collect();
    (wide, vec![sizes[0], sizes[1], 4, sizes[3]])
}

/// The weight that [`four_rows`] gives this one, where it is such a one.
pub(crate) fn trimmed<T: Copy + Default + PartialEq>(sizes: &[i64], values: &[T]) -> Option<(Vec<i64>, Vec<T>)> {
    let &[inputs, outputs, 4, columns] = sizes else { return None };
    let size = columns as usize;
    let is_zero = |row: &[T]| row.iter().all(|value| *value == T::default());
    let mut planes = values.chunks(4 * size);
    let fits = size > 0 && planes.all(|plane| is_zero(&plane[..size]) && is_zero(&plane[3 * size..]));
    let inner = || values.chunks(4 * size).flat_map(|plane| plane[size..3 * size].iter().copied()).collect();
    fits.then(|| (vec![inputs, outputs, 2, columns], inner()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depthwise(groups: i64, outputs: i64) -> Geometry {
        Geometry {
            inputs: groups,
            outputs,
            groups,
            kernel: vec![1, 2],
            stride: vec![1, 1],
            padding: vec![0, 0],
            dilation: vec![1, 1],
            transposed: false,
        }
    }

    #[test]
    fn zeros_come_and_go() {
        for each in [1, 2] {
            let outputs = 4 * each;
            let values: Vec<i8> = (1..=2 * outputs as i8).collect();
            let sizes = vec![outputs, 1, 1, 2];
            let (wide, wide_sizes) = widened(&values, &sizes, &depthwise(4, outputs), 2);
            assert_eq!((wide.len(), &wide_sizes), (2 * values.len(), &vec![outputs, 2, 1, 2]));
            assert_eq!(narrowed(&wide_sizes, &wide), Some((sizes, values)));
        }
        assert_eq!(narrowed(&[2, 2, 1, 1], &[1i8, 2, 3, 4]), None);

        let (values, sizes) = (vec![1i8, 2, 3, 4, 5, 6, 7, 8], vec![1, 2, 2, 2]);
        let (tall, tall_sizes) = four_rows(&values, &sizes);
        assert_eq!(tall, [0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 5, 6, 7, 8, 0, 0]);
        assert_eq!(trimmed(&tall_sizes, &tall), Some((sizes, values)));
    }
}
