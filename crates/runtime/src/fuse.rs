//! Steps that one step computes faster.

use jitquant_kernels::float::{Arithmetic, LEAST_SPAN};
use jitquant_kernels::{Activation, DynamicScheme};

use crate::float::{Attention, Float};
use crate::program::{Op, Step, ValueId, WeightId};

/// Replaces steps by ones that compute several of them, where nothing else takes what is between.
pub(crate) fn fuse(steps: &mut Vec<Step>, outputs: &[ValueId]) {
    for fusion in [attention, stretched, residual, function] {
        let mut at = 0;
        while at < steps.len() {
            if let Some(found) = fusion(&Uses { steps, outputs }, at) {
                found.apply(steps, at);
            }
            at += 1;
        }
        steps.retain(|step| !step.inputs.is_empty());
    }
}

/// What one step in the place of step `at` computes, and which steps are then not needed.
struct Fusion {
    op: Float,
    inputs: Vec<ValueId>,
    without: Vec<usize>,
}

impl Fusion {
    /// The steps that are gone have no inputs, which no other step has.
    fn apply(self, steps: &mut [Step], at: usize) {
        for step in self.without {
            steps[step].inputs.clear();
        }
        (steps[at].op, steps[at].inputs) = (Op::Float(self.op), self.inputs);
    }
}

/// Who makes and takes values.
struct Uses<'a> {
    steps: &'a [Step],
    outputs: &'a [ValueId],
}

impl<'a> Uses<'a> {
    /// The step that makes a value; none for an input.
    fn maker(&self, value: ValueId) -> Option<usize> {
        self.steps.iter().position(|step| step.output == value && !step.inputs.is_empty())
    }

    /// The float step that makes a value, with its operands.
    fn float(&self, value: ValueId) -> Option<(usize, &'a Float, &'a [ValueId])> {
        let at = self.maker(value)?;
        match &self.steps[at].op {
            Op::Float(float) => Some((at, float, &self.steps[at].inputs[..])),
            _ => None,
        }
    }

    /// How often steps take a value, sizes that views ask for too; results count.
    fn count(&self, value: ValueId) -> usize {
        let mut asked = Vec::new();
        for step in self.steps.iter().filter(|step| !step.inputs.is_empty()) {
            asked.extend(&step.inputs);
            if let Op::View(view) = &step.op {
                view.sizes().into_iter().for_each(|size| size.values(&mut asked));
            }
        }
        asked.iter().chain(self.outputs).filter(|taken| **taken == value).count()
    }

    /// As [`float`](Self::float), of a value that is taken `uses` times.
    fn float_for(&self, value: ValueId, uses: usize) -> Option<(usize, &'a Float, &'a [ValueId])> {
        self.float(value).filter(|_| self.count(value) == uses)
    }

    fn own_float(&self, at: usize) -> Option<(&'a Float, &'a [ValueId])> {
        match &self.steps[at].op {
            Op::Float(float) => Some((float, &self.steps[at].inputs[..])),
            _ => None,
        }
    }
}

/// `softmax(q * k * scale + mask) * v`.
fn attention(uses: &Uses<'_>, at: usize) -> Option<Fusion> {
    let (Float::Matmul, [weights, v]) = uses.own_float(at)? else { return None };
    let (softmax, Float::Softmax, [scores]) = uses.float_for(*weights, 1)? else { return None };
    let mut without = vec![softmax];
    let (mut scores, mut mask, mut scale) = (*scores, None, 1.0);
    if let Some((sum, Float::Arithmetic { op: Arithmetic::Add, .. }, [left, right])) = uses.float_for(scores, 1) {
        // The scores are the operand that is a product.
        let is_scores = |value: ValueId| product(uses, value).is_some();
        let (own, other) = if is_scores(*left) { (*left, *right) } else { (*right, *left) };
        (scores, mask) = (own, Some(other));
        without.push(sum);
    }
    if let Some((scaled, Float::Number { op, number, is_left }, [x])) = uses.float_for(scores, 1) {
        scale = match op {
            Arithmetic::Mul => *number,
            Arithmetic::Div if !is_left => (1.0 / f64::from(*number)) as f32,
            _ => return None,
        };
        scores = *x;
        without.push(scaled);
    }
    let (product, Float::Matmul, [q, k]) = uses.float_for(scores, 1)? else { return None };
    without.push(product);
    let form = Attention {
        scale: Some(scale),
        causal: false,
        mask: mask.is_some(),
        blind_is_zero: false,
        keys_are_columns: true,
        heads_inside: false,
    };
    let inputs = [*q, *k, *v].into_iter().chain(mask).collect();
    Some(Fusion { op: Float::Attention(form), inputs, without })
}

/// The product that a value is, perhaps times a number.
fn product(uses: &Uses<'_>, value: ValueId) -> Option<usize> {
    match uses.float_for(value, 1)? {
        (at, Float::Matmul, _) => Some(at),
        (_, Float::Number { op: Arithmetic::Mul | Arithmetic::Div, .. }, [x]) => {
            uses.float_for(*x, 1).filter(|(_, float, _)| **float == Float::Matmul).map(|(at, ..)| at)
        }
        _ => None,
    }
}

/// A dynamic layer on rows that are stretched to 0 to 1.
fn stretched(uses: &Uses<'_>, at: usize) -> Option<Fusion> {
    let is = |float: &Float, wanted: Arithmetic| matches!(float, Float::Arithmetic { op, .. } if *op == wanted);
    let (float, [sum, bias]) = uses.own_float(at)? else { return None };
    let (last, Float::MultiplyAdd { .. }, [product, low, factors]) = uses.float_for(*sum, 1)? else { return None };
    let (scaled, times, [layer, span]) = uses.float_for(*product, 1)? else { return None };
    let (linear, weight, t) = unit_layer(uses, *layer)?;
    let (divided, quotient, [above, divisor]) = uses.float_for(t, 1)? else { return None };
    let (moved, difference, [x, first_low]) = uses.float_for(*above, 1)? else { return None };
    let (clamped, Float::Function(Activation::Clamp { min, max }), [range]) = uses.float_for(*span, 2)? else {
        return None;
    };
    let (ranged, other_difference, [high, second_low]) = uses.float_for(*range, 1)? else { return None };
    let (lowest, Float::Extreme { is_most: false, keeps: true }, [low_of]) = uses.float_for(*low, 3)? else {
        return None;
    };
    let (highest, Float::Extreme { is_most: true, keeps: true }, [high_of]) = uses.float_for(*high, 1)? else {
        return None;
    };
    let fits = is(float, Arithmetic::Add)
        && is(times, Arithmetic::Mul)
        && is(quotient, Arithmetic::Div)
        && is(difference, Arithmetic::Sub)
        && is(other_difference, Arithmetic::Sub)
        && divisor == span
        && [first_low, second_low] == [low, low]
        && [low_of, high_of] == [x, x]
        && (*min, *max) == (LEAST_SPAN, f32::INFINITY);
    let without = vec![last, scaled, linear, divided, moved, clamped, ranged, lowest, highest];
    let op = Float::StretchedLinear { weight, function: None, residual: false };
    fits.then(|| Fusion { op, inputs: vec![*x, *factors, *bias], without })
}

/// A dynamic layer without bounds, whose range is that of the tensor: its step, its weight and its input.
fn unit_layer(uses: &Uses<'_>, value: ValueId) -> Option<(usize, WeightId, ValueId)> {
    let at = uses.maker(value).filter(|_| uses.count(value) == 1)?;
    let Op::LinearDynamic { weight, scheme: DynamicScheme::PerTensor { reduce_range: false }, min, max } =
        &uses.steps[at].op
    else {
        return None;
    };
    let is_open = (*min, *max) == (f32::NEG_INFINITY, f32::INFINITY);
    is_open.then(|| (at, *weight, uses.steps[at].inputs[0]))
}

/// A sum after such a layer.
fn residual(uses: &Uses<'_>, at: usize) -> Option<Fusion> {
    let (Float::Arithmetic { op: Arithmetic::Add, .. }, [left, right]) = uses.own_float(at)? else { return None };
    for (own, other) in [(left, right), (right, left)] {
        if let Some((layer, Float::StretchedLinear { weight, function, residual: false }, inputs)) =
            uses.float_for(*own, 1)
        {
            let op = Float::StretchedLinear { weight: *weight, function: *function, residual: true };
            let inputs = inputs.iter().chain([other]).copied().collect();
            return Some(Fusion { op, inputs, without: vec![layer] });
        }
    }
    None
}

/// A function before such a layer.
fn function(uses: &Uses<'_>, at: usize) -> Option<Fusion> {
    let (Float::StretchedLinear { weight, function: None, residual }, inputs) = uses.own_float(at)? else {
        return None;
    };
    let (before, Float::Function(function), [x]) = uses.float_for(inputs[0], 1)? else { return None };
    let op = Float::StretchedLinear { weight: *weight, function: Some(*function), residual: *residual };
    let inputs = [x].into_iter().chain(&inputs[1..]).copied().collect();
    Some(Fusion { op, inputs, without: vec![before] })
}
