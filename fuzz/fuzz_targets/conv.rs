//! Convolutions of any geometry, depthwise, grouped and transposed ones among them: an error or the scalar path's bits.
#![no_main]

use arbitrary::Arbitrary;
use jitquant_kernels::{ConvShape, Output, PackedConv, Requantize, Residual, Serial};
use jitquant_fuzz::{exactly, finite, on_all, scale};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    groups: u8,
    /// Channels of a group.
    channels: [u8; 2],
    geometry: [[u8; 5]; 3],
    spatial: [u8; 3],
    batch: u8,
    transposed: bool,
    zero_point: u8,
    weight_zero_points: Vec<i8>,
    scale: u32,
    bias: Option<u32>,
    output: (u8, u8, u8),
    residual: Option<(u32, u8)>,
    /// Taken from the scratch memory.
    missing: u8,
    bytes: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let groups = usize::from(input.groups % 70);
    let [inputs, outputs] = input.channels.map(|channels| usize::from(channels % if groups > 4 { 5 } else { 40 }));
    let of = |which: usize, below: u8| input.geometry.map(|dimension| usize::from(dimension[which] % below));
    let shape = ConvShape {
        input_channels: groups * inputs,
        output_channels: groups * outputs,
        groups,
        kernel: of(0, 6),
        stride: of(1, 4),
        padding: of(2, 4),
        dilation: of(3, 4),
        output_padding: if input.transposed { of(4, 3) } else { [0; 3] },
        transposed: input.transposed,
    };
    let spatial = input.spatial.map(|size| usize::from(size % 12));
    let batch = usize::from(input.batch % 3);
    let signed: Vec<i8> = input.bytes.iter().map(|byte| *byte as i8).collect();
    let zero_points: Vec<i32> = input.weight_zero_points.iter().map(|zero| i32::from(*zero)).collect();
    on_all(|isa| {
        if shape.check().is_err() {
            assert!(PackedConv::new(isa, &[], shape, &[]).is_err());
            return Err("the shape".to_owned());
        }
        let weight = exactly(shape.weight_len(), &signed);
        let packed = PackedConv::new(isa, &weight, shape, &zero_points).map_err(|error| error.to_string())?;
        let output = shape.output_spatial(spatial).map_err(|error| error.to_string())?;
        let scratch = packed.scratch_len(batch, spatial, &Serial).map_err(|error| error.to_string())?;
        let len = batch * output.iter().product::<usize>() * shape.output_channels;
        if len > 1 << 16 {
            return Err("too slow".to_owned());
        }
        let a = exactly(batch * spatial.iter().product::<usize>() * shape.input_channels, &input.bytes);
        let scales = exactly(shape.output_channels, &[scale(input.scale)]);
        let bias = input.bias.map_or_else(Default::default, |bias| exactly(shape.output_channels, &[finite(bias)]));
        let residual = exactly(len, &input.bytes);
        let form = Requantize {
            scale: &scales,
            bias: &bias,
            zero_point: input.output.0,
            min: input.output.1,
            max: input.output.2,
            residual: input.residual.map(|(bits, zero_point)| Residual {
                data: &residual,
                scale: scale(bits),
                zero_point,
            }),
            table: None,
        };
        let mut sums = exactly(len, &[0i32]);
        let mut bytes = exactly(len, &[0u8]);
        // Too little scratch is an error, or does not matter.
        let missing = if input.missing % 8 == 7 { usize::from(input.missing / 8) } else { 0 };
        let mut scratch = exactly(scratch.saturating_sub(missing), &[0xa5u8]);
        let first = packed.run(&a, batch, spatial, input.zero_point, Output::I32(&mut sums), &mut scratch, &Serial);
        let second =
            packed.run(&a, batch, spatial, input.zero_point, Output::U8(&mut bytes, form), &mut scratch, &Serial);
        assert_eq!(first.is_ok(), second.is_ok());
        if first.is_err() {
            // How much scratch a path needs is its own.
            assert!(missing > 0, "{first:?}");
            return Err("no scratch".to_owned());
        }
        if missing > 0 {
            return Err("no scratch".to_owned());
        }
        Ok((sums, bytes))
    });
});
