//! What the operators `jitquant::fake_quantize*` (cpp/fake_quantize.cpp) call.

use crate::engine::HostThreads;
use crate::error::{Error, Result, no_panic};
use crate::kernel::geometry::count;
use crate::kernel::{Channels, FakeQuantize, Isa};

#[cxx::bridge(namespace = "jitquant")]
pub(super) mod bridge {
    /// How a tensor is fake-quantized.
    struct FakeQuantizeForm<'a> {
        scale: &'a [f32],
        zero_point: &'a [f32],
        /// The tensor's.
        sizes: &'a [i64],
        /// That of the channels; -1: one scale for all.
        axis: i64,
        quant_min: i64,
        quant_max: i64,
    }

    extern "Rust" {
        fn fake_quantize_forward(x: &[f32], y: &mut [f32], form: FakeQuantizeForm) -> Result<()>;
        fn fake_quantize_gradient(dy: &[f32], x: &[f32], dx: &mut [f32], form: FakeQuantizeForm) -> Result<()>;
        fn fake_quantize_gradients(
            dy: &[f32],
            x: &[f32],
            dx: &mut [f32],
            dscale: &mut [f32],
            dzero_point: &mut [f32],
            form: FakeQuantizeForm,
        ) -> Result<()>;
    }

    unsafe extern "C++" {
        include!("fake_quantize.h");

        type Tensor = crate::ir::ffi::bridge::Tensor;
        fn keep_fake_quantize_operators();
        fn tensor_require_gradient(tensor: &Tensor, on: bool) -> Result<()>;
        fn tensor_gradient(tensor: &Tensor) -> Result<UniquePtr<Tensor>>;
        fn tensor_set_gradient(tensor: &Tensor, gradient: &Tensor) -> Result<()>;
    }
}

use bridge::FakeQuantizeForm;

fn read<'a>(form: &FakeQuantizeForm<'a>) -> Result<FakeQuantize<'a>> {
    let sizes: Vec<usize> = form.sizes.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    count("a tensor", &sizes)?;
    let channels = match usize::try_from(form.axis) {
        Ok(axis) if axis < sizes.len() => Channels::of(&sizes, axis),
        Err(_) if form.axis == -1 => Channels { outer: 1, channels: 1, inner: sizes.iter().product() },
        _ => {
            let (axis, rank) = (form.axis, sizes.len());
            return Err(Error::invalid(format!("axis {axis}: -1 (per tensor), or 0 to {} here", rank.max(1) - 1)));
        }
    };
    let bound = |value: i64| {
        i32::try_from(value).map_err(|_| Error::invalid(format!("{value} is no bound of a quantized integer")))
    };
    Ok(FakeQuantize {
        scale: form.scale,
        zero_point: form.zero_point,
        channels,
        quant_min: bound(form.quant_min)?,
        quant_max: bound(form.quant_max)?,
    })
}

fn fake_quantize_forward(x: &[f32], y: &mut [f32], form: FakeQuantizeForm) -> Result<()> {
    no_panic(|| Ok(read(&form)?.forward(Isa::current(), x, y, &HostThreads::new())?))
}

fn fake_quantize_gradient(dy: &[f32], x: &[f32], dx: &mut [f32], form: FakeQuantizeForm) -> Result<()> {
    no_panic(|| Ok(read(&form)?.backward(Isa::current(), dy, x, dx, &HostThreads::new())?))
}

fn fake_quantize_gradients(
    dy: &[f32],
    x: &[f32],
    dx: &mut [f32],
    dscale: &mut [f32],
    dzero_point: &mut [f32],
    form: FakeQuantizeForm,
) -> Result<()> {
    no_panic(|| {
        let q = read(&form)?;
        Ok(q.backward_learned(Isa::current(), dy, x, dx, dscale, dzero_point, &HostThreads::new())?)
    })
}
