//! The operators of namespace `jitquant`: against libtorch's quantized ones, on odd shapes, and what they refuse.
#![cfg(feature = "torch")]

mod support;

use jitquant::ir::{IValue, Tensor};
use support::{module, noise, tensor};

/// The largest distance of two u8 tensors, and how many elements differ.
fn distance(a: &IValue, b: &IValue) -> (u8, usize, usize) {
    let bytes = |x: &IValue| x.as_tensor().unwrap().to_vec::<u8>().unwrap();
    let (left, right) = (bytes(a), bytes(b));
    assert_eq!(a.as_tensor().unwrap().shape(), b.as_tensor().unwrap().shape());
    let steps = || left.iter().zip(&right).map(|(a, b)| a.abs_diff(*b));
    (steps().max().unwrap_or(0), steps().filter(|step| *step > 0).count(), left.len())
}

/// Runs `theirs` and `ours`, expressions of a quantized tensor `q` (scale 0.02, zero point 117) and of its bytes `b`; both give
/// bytes. `layout` makes the input what it should be in memory. Gives how many bytes differ.
fn compare(name: &str, shape: &[i64], layout: &str, theirs: &str, ours: &str) -> usize {
    let ops = module(&format!(
        "def stock(self, x: Tensor):\n    q = torch.quantize_per_tensor({layout}, 0.02, 117, 13)\n    return torch.int_repr({theirs})\n\
         def native(self, x: Tensor):\n    b = ops.jitquant.quantize({layout}, 0.02, 117)\n    return {ours}\n\
         def sizes(self, x: Tensor):\n    b = torch.empty_like(ops.jitquant.quantize({layout}, 0.02, 117), device='meta')\n    return {ours}\n"
    ));
    let x = tensor(shape, 5);
    let (stock, native): (IValue, IValue) =
        (ops.call("stock", std::slice::from_ref(&x)).unwrap(), ops.call("native", std::slice::from_ref(&x)).unwrap());
    let (largest, differing, count) = distance(&stock, &native);
    println!("{name} {shape:?}: {differing} of {count} differ, by {largest} at most");
    assert!(largest <= 1, "{name} {shape:?}: {largest} steps");
    let meta: IValue = ops.call("sizes", &[x]).unwrap();
    assert_eq!(meta.as_tensor().unwrap().shape(), native.as_tensor().unwrap().shape(), "{name}: shape on meta tensors");
    differing
}

#[test]
fn operators_without_weights_are_libtorchs_to_a_step() {
    let images: [&[i64]; 3] = [&[2, 5, 9, 7], &[1, 33, 8, 8], &[3, 16, 1, 4]];
    for layout in ["x", "x.contiguous(memory_format=2)", "x.transpose(2, 3)"] {
        for shape in images {
            compare(
                "add",
                shape,
                layout,
                "ops.quantized.add(q, q, 0.03, 100)",
                "ops.jitquant.add(b, 0.02, 117, b, 0.02, 117, 0.03, 100)",
            );
            compare(
                "add_relu",
                shape,
                layout,
                "ops.quantized.add_relu(q, q, 0.03, 100)",
                "ops.jitquant.add(b, 0.02, 117, b, 0.02, 117, 0.03, 100, 100, 255)",
            );
            compare(
                "mul",
                shape,
                layout,
                "ops.quantized.mul(q, q, 0.01, 90)",
                "ops.jitquant.mul(b, 0.02, 117, b, 0.02, 117, 0.01, 90)",
            );
            compare("relu", shape, layout, "torch.relu(q)", "ops.jitquant.clamp(b, 117, 255)");
            compare(
                "cat",
                shape,
                layout,
                "ops.quantized.cat([q, q], 1, 0.03, 100)",
                "ops.jitquant.cat([b, b], [0.02, 0.02], [117, 117], 1, 0.03, 100)",
            );
            compare(
                "hardswish",
                shape,
                layout,
                "ops.quantized.hardswish(q, 0.015, 30)",
                "ops.jitquant.lookup(b, ops.jitquant.activation_table('hardswish', [], 0.02, 117, 0.015, 30))",
            );
            compare(
                "sigmoid",
                shape,
                layout,
                "torch.sigmoid(q)",
                "ops.jitquant.lookup(b, ops.jitquant.activation_table('sigmoid', [], 0.02, 117, 0.00390625, 0))",
            );
            compare(
                "requantize",
                shape,
                layout,
                "torch.quantize_per_tensor(torch.dequantize(q), 0.05, 10, 13)",
                "ops.jitquant.requantize(b, 0.02, 117, 0.05, 10)",
            );
            compare(
                "adaptive_avg_pool",
                shape,
                layout,
                "torch.adaptive_avg_pool2d(q, [1, 2])",
                "ops.jitquant.adaptive_avg_pool(b, 117, [1, 2])",
            );
            for dims in ["[2, 3], False", "[-1, -2], True", "[1], False", "[0, 3], True", "None, False"] {
                let ours = format!("ops.jitquant.mean(b, 117, {dims})");
                compare(&format!("mean {dims}"), shape, layout, &format!("torch.mean(q.contiguous(), {dims})"), &ours);
            }
            compare(
                "batch_norm",
                shape,
                layout,
                "ops.quantized.batch_norm(q, torch.ones([x.size(1)]), torch.ones([x.size(1)]), torch.zeros([x.size(1)]), torch.ones([x.size(1)]), 1e-5, 0.03, 60)",
                "ops.jitquant.batch_norm(b, 0.02, 117, torch.ones([x.size(1)]), torch.ones([x.size(1)]), torch.zeros([x.size(1)]), torch.ones([x.size(1)]), 1e-5, 0.03, 60)",
            );
        }
    }
    let x = "x";
    for shape in [&[2, 5, 9, 7], &[1, 33, 8, 8]] {
        compare(
            "max_pool",
            shape,
            x,
            "torch.max_pool2d(q, [3, 3], [2, 2], [1, 1])",
            "ops.jitquant.max_pool(b, [3, 3], [2, 2], [1, 1], [1, 1])",
        );
        compare(
            "max_pool, ceil",
            shape,
            x,
            "torch.max_pool2d(q, [2, 2], [2, 2], [0, 0], [1, 1], True)",
            "ops.jitquant.max_pool(b, [2, 2], [], [0, 0], [1, 1], True)",
        );
        compare(
            "avg_pool",
            shape,
            x,
            "torch.avg_pool2d(q, [3, 3], [2, 2], [1, 1])",
            "ops.jitquant.avg_pool(b, 117, [3, 3], [2, 2], [1, 1])",
        );
        compare(
            "layer_norm",
            shape,
            x,
            "ops.quantized.layer_norm(q, [x.size(3)], None, None, 1e-5, 0.03, 128)",
            "ops.jitquant.layer_norm(b, 0.02, 117, [x.size(3)], None, None, 1e-5, 0.03, 128)",
        );
        compare(
            "instance_norm",
            shape,
            x,
            "ops.quantized.instance_norm(q, None, None, 1e-5, 0.03, 128)",
            "ops.jitquant.instance_norm(b, 0.02, 117, None, None, 1e-5, 0.03, 128)",
        );
    }
    compare(
        "group_norm",
        &[2, 6, 5, 5],
        x,
        "ops.quantized.group_norm(q, 3, None, None, 1e-5, 0.03, 128)",
        "ops.jitquant.group_norm(b, 0.02, 117, 3, None, None, 1e-5, 0.03, 128)",
    );
    compare(
        "softmax",
        &[7, 31],
        x,
        "ops.quantized.softmax(q, 1, 0.00390625, 0)",
        "ops.jitquant.softmax(b, 0.02, 117, 1, 0.00390625, 0)",
    );
    compare(
        "softmax, dim 0",
        &[7, 31],
        x,
        "ops.quantized.softmax(q, 0, 0.00390625, 0)",
        "ops.jitquant.softmax(b, 0.02, 117, 0, 0.00390625, 0)",
    );
    compare(
        "broadcast",
        &[4, 3, 1, 5],
        x,
        "ops.quantized.mul(q, torch.transpose(q, 0, 2), 0.01, 90)",
        "ops.jitquant.mul(b, 0.02, 117, torch.transpose(b, 0, 2), 0.02, 117, 0.01, 90)",
    );
}

/// A layer packed by libtorch and by jitquant from one weight, both run.
fn compare_layer(name: &str, weight: &[i64], input: &[i64], stock: [&str; 2], native: [&str; 2]) {
    for per_channel in [true, false] {
        let outputs = weight[0];
        let quantized = match per_channel {
            true => "q = torch.quantize_per_channel(w, torch.abs(s) * 0.004 + 0.004, torch.zeros_like(s).to(4), 0, 12)",
            false => "q = torch.quantize_per_tensor(w, 0.008, 0, 12)",
        };
        let plain = match per_channel {
            true => {
                "i = torch.int_repr(q)\n    c = (torch.abs(s) * 0.004 + 0.004).to(6)\n    z = torch.zeros_like(s).to(3)"
            }
            false => "i = torch.int_repr(q)\n    c = torch.full([1], 0.008)\n    z = torch.zeros([1], dtype=3)",
        };
        let (pack, run) = (stock[0], stock[1]);
        let (native_pack, native_run) = (native[0], native[1]);
        let ops = module(&format!(
            "def stock(self, x: Tensor, w: Tensor, s: Tensor):\n    {quantized}\n    p = {pack}\n    \
             x = torch.quantize_per_tensor(x, 0.008, 120, 13)\n    return torch.int_repr({run})\n\
             def native(self, x: Tensor, w: Tensor, s: Tensor):\n    {quantized}\n    {plain}\n    p = {native_pack}\n    \
             x = ops.jitquant.quantize(x, 0.008, 120)\n    return {native_run}\n\
             def shared(self, x: Tensor, w: Tensor, s: Tensor):\n    {quantized}\n    k = {pack}\n    \
             p = ops.jitquant.{from_packed}(k)\n    x = ops.jitquant.quantize(x, 0.008, 120)\n    return {native_run}\n",
            from_packed = if name.starts_with("linear") { "linear_from_packed" } else { "conv_from_packed" },
        ));
        let (x, w, s) = (tensor(input, 1), tensor(weight, 2), tensor(&[outputs], 3));
        let results = ["stock", "native", "shared"].map(|method| {
            ops.call::<Tensor>(method, &[x.clone(), w.clone(), s.clone()]).unwrap_or_else(|e| panic!("{name}: {e}"))
        });
        let (largest, differing, count) = distance(&results[0], &results[1]);
        println!("{name}, per channel {per_channel}: {differing} of {count} differ, by {largest} at most");
        assert!(largest <= 1, "{name}: {largest} steps");
        assert_eq!(distance(&results[1], &results[2]).0, 0, "{name}: the same weight, taken from libtorch's");
    }
}

#[test]
fn layers_are_libtorchs_to_a_step() {
    for (inputs, outputs, rows) in [(64, 32, 5), (37, 19, 1), (128, 65, 33)] {
        compare_layer(
            "linear",
            &[outputs, inputs],
            &[rows, inputs],
            ["ops.quantized.linear_prepack(q, s)", "ops.quantized.linear(x, p, 0.03, 100)"],
            ["ops.jitquant.linear_prepack(i, c, z, s)", "ops.jitquant.linear(x, p, 0.008, 120, 0.03, 100)"],
        );
    }
    compare_layer(
        "linear, relu, three dimensions",
        &[16, 24],
        &[2, 3, 24],
        ["ops.quantized.linear_prepack(q, None)", "ops.quantized.linear_relu(x, p, 0.03, 100)"],
        ["ops.jitquant.linear_prepack(i, c, z)", "ops.jitquant.linear(x, p, 0.008, 120, 0.03, 100, 100)"],
    );
    for (weight, input, stride, padding, dilation, groups) in [
        ([8, 6, 3, 3], [2, 6, 11, 9], 1, 1, 1, 1),
        ([12, 4, 5, 3], [1, 8, 12, 12], 2, 2, 1, 2),
        ([16, 1, 3, 3], [1, 16, 7, 7], 2, 1, 1, 16),
        ([7, 3, 1, 1], [3, 3, 5, 5], 1, 0, 1, 1),
        ([4, 4, 3, 3], [1, 4, 9, 9], 1, 2, 2, 1),
    ] {
        let geometry = format!("[{stride}, {stride}], [{padding}, {padding}], [{dilation}, {dilation}]");
        compare_layer(
            "conv2d",
            &weight,
            &input,
            [
                &format!("ops.quantized.conv2d_prepack(q, s, {geometry}, {groups})"),
                "ops.quantized.conv2d_relu(x, p, 0.05, 30)",
            ],
            [
                &format!("ops.jitquant.conv_prepack(i, c, z, s, {geometry}, [0, 0], {groups})"),
                "ops.jitquant.conv(x, p, 0.008, 120, 0.05, 30, 30, 255)",
            ],
        );
    }
}

#[test]
fn a_residual_is_added_before_rounding_and_a_table_applied_after() {
    let ops = module(
        "def make(self, w: Tensor):\n    return ops.jitquant.conv_prepack(w.to(1), torch.full([1], 0.01), torch.zeros([1], dtype=3), None, [1, 1], [0, 0], [1, 1], [0, 0])\n\
         def fused(self, x: Tensor, w: Tensor, r: Tensor):\n    p = self.make(w)\n    return ops.jitquant.conv(x, p, 0.02, 3, 0.5, 20, 20, 255, r, 0.25, 100, None)\n\
         def apart(self, x: Tensor, w: Tensor, r: Tensor):\n    p = self.make(w)\n    y = ops.jitquant.conv_float(x, p, 0.02, 3) + ops.jitquant.dequantize(r, 0.25, 100)\n    return ops.jitquant.clamp(ops.jitquant.quantize(y, 0.5, 20), 20, 255)\n\
         def looked_up(self, x: Tensor, w: Tensor, t: Tensor):\n    p = self.make(w)\n    return ops.jitquant.conv(x, p, 0.02, 3, 0.5, 20, 0, 255, None, 1., 0, t)\n\
         def looked_up_apart(self, x: Tensor, w: Tensor, t: Tensor):\n    p = self.make(w)\n    return ops.jitquant.lookup(ops.jitquant.conv(x, p, 0.02, 3, 0.5, 20), t)\n",
    );
    let bytes = |shape: &[i64], seed: u64| {
        let values: Vec<u8> =
            noise(shape.iter().product::<i64>() as usize, seed).iter().map(|v| ((v + 1.0) * 127.5) as u8).collect();
        Tensor::from_slice(&values, shape).unwrap()
    };
    let weight: Vec<f32> = noise(6 * 4, 9).iter().map(|v| (v * 127.0).round()).collect();
    let (x, w) = (bytes(&[2, 4, 5, 5], 1), Tensor::from_slice(&weight, &[6, 4, 1, 1]).unwrap());
    // The second is broadcast to the output, the output to the third.
    for residual in [bytes(&[2, 6, 5, 5], 2), bytes(&[1, 6, 1, 1], 2), bytes(&[3, 2, 6, 5, 5], 2)] {
        let run = |method: &str| ops.call::<Tensor>(method, &[x.clone(), w.clone(), residual.clone()]).unwrap();
        assert!(distance(&run("fused"), &run("apart")).0 <= 1);
    }
    let table = bytes(&[256], 4);
    let run = |method: &str| ops.call::<Tensor>(method, &[x.clone(), w.clone(), table.clone()]).unwrap();
    assert_eq!(distance(&run("looked_up"), &run("looked_up_apart")).0, 0);
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let refuses = |call: &str, words: &str| {
        let ops =
            module(&format!("def run(self, x: Tensor):\n    b = torch.zeros([2, 4], dtype=0)\n    return {call}\n"));
        let refusal = ops.call("run", &[tensor(&[2, 4], 1)]).unwrap_err().to_string();
        assert!(refusal.contains(words), "{call}: {refusal}");
    };
    refuses("ops.jitquant.quantize(b, 0.1, 0)", "a tensor of Float on the CPU is accepted");
    refuses("ops.jitquant.quantize(x, 0.0, 0)", "a positive number is accepted");
    refuses("ops.jitquant.quantize(x, 0.1, 256)", "0 to 255 is accepted");
    refuses("ops.jitquant.add(x, 0.1, 0, b, 0.1, 0, 0.1, 0)", "a tensor of Byte on the CPU is accepted");
    refuses("ops.jitquant.lookup(b, b)", "one of 256 is accepted");
    refuses("ops.jitquant.activation_table('sine', [], 0.1, 0, 0.1, 0)", "there are relu, clamp");
    refuses("ops.jitquant.activation_table('elu', [1.0], 0.1, 0, 0.1, 0)", "elu takes 3 parameters, not 1");
    refuses(
        "ops.jitquant.max_pool(b, [2, 2], [2, 2], [0, 0], [1, 1])",
        "[batch, channels, …] or [channels, …] is accepted",
    );
    let b = "b.view([1, 2, 2, 2])";
    refuses(
        &format!("ops.jitquant.upsample_nearest({b}, None)"),
        "0 output sizes and 0 scale factors; one of them or both, for 1 to 3 spatial dimensions, are accepted",
    );
    refuses(
        &format!("ops.jitquant.upsample_nearest({b}, [4, 4], [2.0])"),
        "2 output sizes and 1 scale factors; one of them or both",
    );
    refuses(
        &format!("ops.jitquant.upsample_nearest({b}, [4, 0])"),
        "an image of sizes [2, 2] cannot become one of [4, 0]; sizes from 1 to 2^31 - 1 are accepted",
    );
    refuses(&format!("ops.jitquant.upsample_bilinear({b}, [4], False)"), "1 spatial dimensions; 2 are accepted");
    refuses("ops.jitquant.upsample_nearest(b, [4, 4])", "an input of sizes [2, 4] for 2 spatial dimensions");
    refuses("ops.jitquant.upsample_nearest(x, [4])", "a tensor of Byte on the CPU is accepted");
    refuses("ops.jitquant.linear_prepack(x, torch.ones([2]), torch.zeros([2]))", "int8 is accepted");
    refuses(
        "ops.jitquant.linear(b, ops.jitquant.linear_prepack(torch.zeros([3, 5], dtype=1), torch.ones([3]), torch.zeros([3])), 0.1, 0, 0.1, 0)",
        "an input of sizes [2, 4] for a layer of 5 inputs",
    );
}

/// As `compare`, and the same bytes.
fn same(name: &str, shape: &[i64], layout: &str, theirs: &str, ours: &str) {
    assert_eq!(compare(name, shape, layout, theirs, ours), 0, "{name} {shape:?}: bytes that differ");
}

#[test]
fn images_are_upsampled_as_by_libtorch() {
    for layout in ["x", "x.contiguous(memory_format=2)", "x.transpose(2, 3)"] {
        for shape in [&[2, 5, 9, 7], &[1, 33, 4, 6], &[3, 64, 1, 4]] {
            for (height, width) in [(12, 12), (18, 14), (5, 3), (1, 1)] {
                same(
                    "nearest",
                    shape,
                    layout,
                    &format!("torch.upsample_nearest2d(q, [{height}, {width}])"),
                    &format!("ops.jitquant.upsample_nearest(b, [{height}, {width}])"),
                );
                for align in ["False", "True"] {
                    compare(
                        "bilinear",
                        shape,
                        layout,
                        &format!("torch.upsample_bilinear2d(q, [{height}, {width}], {align})"),
                        &format!("ops.jitquant.upsample_bilinear(b, [{height}, {width}], {align})"),
                    );
                }
            }
            // Where a dimension keeps its size, libtorch's quantized operators do not do what its float ones do:
            // tests/native_limits.rs.
            for factors in ["[2.0, 2.0]", "[1.7, 2.3]", "[3.0, 1.3]"] {
                same(
                    "nearest, factors",
                    shape,
                    layout,
                    &format!("torch.upsample_nearest2d(q, None, {factors})"),
                    &format!("ops.jitquant.upsample_nearest(b, None, {factors})"),
                );
            }
            same(
                "nearest, sizes and factors",
                shape,
                layout,
                "torch.upsample_nearest2d(q, [20, 13], 2.5, 1.9)",
                "ops.jitquant.upsample_nearest(b, [20, 13], [2.5, 1.9])",
            );
            compare(
                "bilinear, factors",
                shape,
                layout,
                "torch.upsample_bilinear2d(q, None, False, [1.7, 2.3])",
                "ops.jitquant.upsample_bilinear(b, None, False, [1.7, 2.3])",
            );
            // The sizes that the factors give: with others libtorch reads past the image.
            compare(
                "bilinear, sizes and factors",
                shape,
                layout,
                "torch.upsample_bilinear2d(q, [int(q.size(2) * 2.6), int(q.size(3) * 1.9)], False, 2.6, 1.9)",
                "ops.jitquant.upsample_bilinear(b, [int(b.size(2) * 2.6), int(b.size(3) * 1.9)], False, [2.6, 1.9])",
            );
        }
    }
    // Large enough for several threads.
    let large = &[1, 40, 64, 64];
    compare(
        "bilinear",
        large,
        "x",
        "torch.upsample_bilinear2d(q, [128, 128], False)",
        "ops.jitquant.upsample_bilinear(b, [128, 128], False)",
    );
    let theirs = "torch.upsample_nearest2d(q, [100, 150])";
    same("nearest", large, "x", theirs, "ops.jitquant.upsample_nearest(b, [100, 150])");
    for layout in ["x", "x.contiguous(memory_format=3)"] {
        same(
            "nearest, 3d",
            &[2, 6, 3, 4, 5],
            layout,
            "torch.upsample_nearest3d(q, [7, 4, 8])",
            "ops.jitquant.upsample_nearest(b, [7, 4, 8])",
        );
        same(
            "nearest, 3d, factors",
            &[2, 6, 3, 4, 5],
            layout,
            "torch.upsample_nearest3d(q, None, [2.0, 1.0, 1.5])",
            "ops.jitquant.upsample_nearest(b, None, [2.0, 1.0, 1.5])",
        );
    }
    // libtorch has no quantized one of one dimension.
    same(
        "nearest, 1d",
        &[2, 6, 9],
        "x",
        "torch.upsample_nearest2d(q.unsqueeze(2), [1, 20]).squeeze(2)",
        "ops.jitquant.upsample_nearest(b, [20])",
    );
    same(
        "without a batch",
        &[5, 4, 6],
        "x",
        "torch.upsample_nearest2d(q.unsqueeze(0), [9, 5]).squeeze(0)",
        "ops.jitquant.upsample_nearest(b, [9, 5])",
    );
}

#[test]
fn an_image_goes_on_where_sizes_exceed_what_factors_give() {
    // libtorch's quantized operator reads past it: docs/differences.md.
    let ops = module(
        "def run(self, b: Tensor) -> Tensor:\n    return ops.jitquant.upsample_bilinear(b, [2, 8], False, [2.0, 2.0])\n",
    );
    let image = Tensor::from_slice(&[10u8, 30], &[1, 1, 1, 2]).unwrap();
    let row = [10, 15, 25, 30, 30, 30, 30, 30];
    let large = ops.call("run", &[image]).unwrap();
    assert_eq!(large.as_tensor().unwrap().to_vec::<u8>().unwrap(), [row, row].concat());
}

#[test]
fn channels_are_quantized_as_by_libtorch() {
    let ops = module(
        "def stock(self, x: Tensor, s: Tensor, z: Tensor):\n    q = torch.quantize_per_channel(x, s, z, 1, 12)\n    return torch.int_repr(q).to(0), torch.dequantize(q)\n\
         def native(self, x: Tensor, s: Tensor, z: Tensor):\n    q = ops.jitquant.quantize_per_channel(x, s, z, 1)\n    return q.to(0), ops.jitquant.dequantize_per_channel(q, s, z, 1)\n",
    );
    for shape in [[2, 5, 7, 3], [600, 5, 8, 11]] {
        let scales = Tensor::from_slice(&[0.01f32, 0.02, 0.004, 0.1, 0.05], &[5]).unwrap();
        let zero_points = Tensor::from_slice(&[0i64, 3, -128, 127, -5], &[5]).unwrap();
        let run = |method: &str| -> IValue {
            ops.call(method, &[tensor(&shape, 3), scales.clone(), zero_points.clone()]).unwrap()
        };
        let (stock, native) = (run("stock"), run("native"));
        let parts = |x: &IValue| x.tensors().into_iter().map(|x| x.to_f32_vec().unwrap()).collect::<Vec<_>>();
        assert_eq!(parts(&stock), parts(&native), "{shape:?}");
    }
}
