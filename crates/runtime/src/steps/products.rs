//! Products of float matrices, and attention.

use jitquant_kernels::float::{self, Batch, BatchMut, Mask, Product, attention_scratch_len, matmul_scratch_len};
use jitquant_kernels::{Isa, Parallel};

use super::Kernel;
use super::binary::broadcast;
use super::elements::{floats, floats_mut};
use crate::float::Attention;
use crate::layout::{Element, Format, Layout};
use crate::plan::{OPERANDS, Placed, Planner};
use crate::view::expanded;
use crate::{Error, Result, refuse};

/// Products of matrices for known sizes; strides are those of batch, head, row and column.
pub(crate) enum Call {
    Matmul {
        product: Product,
        a: [usize; 4],
        b: [usize; 4],
        out: [usize; 3],
    },
    Attention {
        form: float::Attention,
        q: [usize; 4],
        k: [usize; 4],
        v: [usize; 4],
        mask: Option<[usize; 3]>,
        out: [usize; 3],
    },
}

/// The sizes of all but the last two dimensions.
fn outer(x: &Layout) -> Result<&[i64]> {
    match x.rank().checked_sub(2) {
        Some(rank) => Ok(&x.sizes[..rank]),
        None => refuse(format!("matrices of a tensor of sizes {:?}", x.sizes)),
    }
}

/// The last two sizes.
fn matrix(x: &Layout) -> [usize; 2] {
    [x.sizes[x.rank() - 2] as usize, x.sizes[x.rank() - 1] as usize]
}

/// `x` with its outer dimensions repeated to `sizes`.
fn repeated(x: &Layout, sizes: &[i64]) -> Result<Layout> {
    expanded(x, &[sizes, &x.sizes[x.rank() - 2..]].concat())
}

/// The outer dimensions of tensors of equal outer sizes as two, with the strides of each tensor; `None` where strides cannot
/// say it.
fn two_outer(sizes: &[i64], tensors: &[&Layout]) -> Option<([usize; 2], Vec<[usize; 2]>)> {
    let mut merged: Vec<(usize, Vec<usize>)> = Vec::new();
    for (axis, size) in sizes.iter().enumerate().filter(|(_, size)| **size != 1) {
        let (size, strides) = (*size as usize, tensors.iter().map(|x| x.strides[axis] as usize).collect::<Vec<_>>());
        match merged.last_mut() {
            Some((outer, above)) if above.iter().zip(&strides).all(|(above, stride)| *above == stride * size) => {
                (*outer, *above) = (*outer * size, strides);
            }
            _ => merged.push((size, strides)),
        }
    }
    while merged.len() < 2 {
        merged.insert(0, (1, vec![0; tensors.len()]));
    }
    let [batch, heads] = &merged[..] else { return None };
    Some(([batch.0, heads.0], (0..tensors.len()).map(|at| [batch.1[at], heads.1[at]]).collect()))
}

/// The strides of a tensor's matrices, with those of the outer dimensions.
fn strides(x: &Layout, [batch, head]: [usize; 2]) -> [usize; 4] {
    let [row, column] = [x.rank() - 2, x.rank() - 1].map(|axis| x.strides[axis] as usize);
    [batch, head, row, column]
}

/// Plans the products of the matrices in the last two dimensions.
pub(super) fn matmul(planner: &mut Planner<'_>, a: &Placed, b: &Placed) -> Result<Placed> {
    let outer = broadcast(outer(&a.layout)?, outer(&b.layout)?)?;
    let ([rows, inner], [other, columns]) = (matrix(&a.layout), matrix(&b.layout));
    if inner != other {
        return refuse(format!("a product of sizes {:?} and {:?}", a.layout.sizes, b.layout.sizes));
    }
    let sizes = [&outer[..], &[rows as i64, columns as i64]].concat();
    let layout = Layout::new(Element::F32, &sizes, Format::Contiguous);
    layout.check()?;
    let (x, y) = (repeated(&a.layout, &outer)?, repeated(&b.layout, &outer)?);
    let Some(([batch, heads], outer)) = two_outer(&outer, &[&x, &y, &layout]) else {
        return refuse(format!("products of sizes {:?} and {:?}", a.layout.sizes, b.layout.sizes));
    };
    let product = Product { batch, heads, rows, inner, columns };
    let (out, scratch) = (strides(&layout, outer[2]), matmul_scratch_len(product, planner.threads.threads().max(1)));
    let call =
        Call::Matmul { product, a: strides(&x, outer[0]), b: strides(&y, outer[1]), out: [out[0], out[1], out[2]] };
    let to = planner.result(layout)?;
    planner.push(Kernel::Product(call), &[a, b], &to, scratch * size_of::<f32>());
    Ok(to)
}

/// Plans attention of queries, keys and values, and a mask where there is one.
pub(super) fn attention(planner: &mut Planner<'_>, form: &Attention, operands: &[Placed]) -> Result<Placed> {
    let (q, k, v) = (&operands[0].layout, &operands[1].layout, &operands[2].layout);
    let sizes = broadcast(&broadcast(outer(q)?, outer(k)?)?, outer(v)?)?;
    let keys = if form.keys_are_columns { turned(k) } else { k.clone() };
    let ([rows, dim], [columns, key_dim], [values, value_dim]) = (matrix(q), matrix(&keys), matrix(v));
    if dim != key_dim || columns != values {
        return refuse(format!("attention of sizes {:?}, {:?} and {:?}", q.sizes, keys.sizes, v.sizes));
    }
    let layout =
        result(&[&sizes[..], &[rows as i64, value_dim as i64]].concat(), form.heads_inside || !planner.is_result());
    layout.check()?;
    let mask = match operands.get(3) {
        Some(mask) => Some(added(planner, mask, &[&sizes[..], &[rows as i64, columns as i64]].concat())?),
        None => None,
    };
    let all = [repeated(q, &sizes)?, repeated(&keys, &sizes)?, repeated(v, &sizes)?];
    let mut tensors: Vec<&Layout> = all.iter().chain([&layout]).collect();
    tensors.extend(mask.iter().map(|(_, layout)| layout));
    let Some(([batch, heads], outer)) = two_outer(&sizes, &tensors) else {
        return refuse(format!("attention of sizes {:?}, {:?} and {:?}", q.sizes, keys.sizes, v.sizes));
    };
    let scale = form.scale.unwrap_or((1.0 / (dim as f64).sqrt()) as f32);
    let (causal, blind_is_zero) = (form.causal, form.blind_is_zero);
    let kernel = float::Attention { batch, heads, rows, columns, dim, value_dim, scale, causal, blind_is_zero };
    let scratch = attention_scratch_len(&kernel, planner.threads.threads().max(1));
    let at = |tensor: usize| strides(tensors[tensor], outer[tensor]);
    let rows_at = |tensor: usize| {
        let [batch, head, row, _] = at(tensor);
        [batch, head, row]
    };
    let other = mask.as_ref().map(|_| rows_at(4));
    let call = Call::Attention { form: kernel, q: at(0), k: at(1), v: at(2), mask: other, out: rows_at(3) };
    let to = planner.result(layout.clone())?;
    let mut inputs: Vec<&Placed> = operands[..3].iter().collect();
    inputs.extend(mask.iter().map(|(mask, _)| mask));
    planner.push(Kernel::Product(call), &inputs, &to, scratch * size_of::<f32>());
    Ok(to)
}

/// With its last two dimensions exchanged.
fn turned(x: &Layout) -> Layout {
    let (mut turned, rank) = (x.clone(), x.rank());
    turned.sizes.swap(rank - 2, rank - 1);
    turned.strides.swap(rank - 2, rank - 1);
    turned
}

/// The layout of a result; with `heads_inside` the heads of a row lie together, so that joining them is a view.
fn result(sizes: &[i64], heads_inside: bool) -> Layout {
    let rank = sizes.len();
    if !heads_inside || rank < 3 {
        return Layout::new(Element::F32, sizes, Format::Contiguous);
    }
    let mut order = sizes.to_vec();
    order.swap(rank - 3, rank - 2);
    let mut layout = Layout::new(Element::F32, &order, Format::Contiguous);
    layout.sizes.swap(rank - 3, rank - 2);
    layout.strides.swap(rank - 3, rank - 2);
    layout
}

/// A mask as floats whose rows have no gaps, and its layout repeated to `sizes`.
fn added(planner: &mut Planner<'_>, mask: &Placed, sizes: &[i64]) -> Result<(Placed, Layout)> {
    let mask = match mask.layout.element {
        Element::F32 => mask.clone(),
        Element::Bool => {
            let dense = planner.without_gaps(mask)?;
            let to = planner.temporary(Layout { element: Element::F32, ..dense.layout.clone() });
            planner.push(Kernel::Mask, &[&dense], &to, 0);
            to
        }
        Element::U8 => return refuse("a mask of bytes"),
    };
    let whole = expanded(&mask.layout, sizes)?;
    let has_rows = whole.sizes.last() == Some(&1) || whole.strides.last() == Some(&1);
    if has_rows {
        return Ok((mask, whole));
    }
    // Its own sizes, but whole rows.
    let mut own = mask.layout.sizes.clone();
    match (own.last_mut(), sizes.last()) {
        (Some(own), Some(size)) => *own = *size,
        _ => own = sizes[sizes.len() - 1..].to_vec(),
    }
    let rows = mask.seen(expanded(&mask.layout, &own)?, 0);
    let copy = planner.dense(&rows, Format::Contiguous)?;
    let whole = expanded(&copy.layout, sizes)?;
    Ok((copy, whole))
}

/// Truth values as what is added to scores: 0, or -inf where they are false.
pub(super) fn mask(x: &[u8], out: &mut [u8]) -> Result<()> {
    for (to, seen) in floats_mut(out)?.iter_mut().zip(x) {
        *to = if *seen == 0 { f32::NEG_INFINITY } else { 0.0 };
    }
    Ok(())
}

impl Call {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Matmul { .. } => "matmul",
            Self::Attention { .. } => "attention",
        }
    }

    pub fn products(&self) -> u64 {
        match self {
            Self::Matmul { product: p, .. } => {
                [p.batch, p.heads, p.rows, p.inner, p.columns].map(|size| size as u64).iter().product()
            }
            Self::Attention { form: f, .. } => {
                [f.batch, f.heads, f.rows, f.columns, f.dim + f.value_dim].map(|size| size as u64).iter().product()
            }
        }
    }

    pub fn run(
        &self,
        isa: Isa,
        inputs: [Option<&[u8]>; OPERANDS],
        out: &mut [u8],
        scratch: &mut [u8],
        threads: &dyn Parallel,
    ) -> Result<()> {
        let operand = |index: usize| match inputs[index] {
            Some(bytes) => floats(bytes),
            None => Err(Error("a product without an operand".to_owned())),
        };
        let (data, scratch) = (floats_mut(out)?, floats_mut(scratch)?);
        match self {
            Self::Matmul { product, a, b, out } => {
                let (a, b) = (Batch { data: operand(0)?, strides: *a }, Batch { data: operand(1)?, strides: *b });
                let out = BatchMut { data, strides: *out };
                float::matmul(isa, *product, a, b, 1.0, None, out, scratch, threads);
            }
            Self::Attention { form, q, k, v, mask, out } => {
                let batch =
                    |index: usize, strides: [usize; 4]| Ok::<_, Error>(Batch { data: operand(index)?, strides });
                let mask = match mask {
                    Some(strides) => Some(Mask { data: operand(3)?, strides: *strides }),
                    None => None,
                };
                let out = BatchMut { data, strides: *out };
                float::attention(isa, form, batch(0, *q)?, batch(1, *k)?, batch(2, *v)?, mask, out, scratch, threads);
            }
        }
        Ok(())
    }
}
