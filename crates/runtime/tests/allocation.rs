//! A run allocates nothing once its plan and its arena are there.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use jitquant_kernels::{ConvShape, Isa, PackedConv, QParams, Serial, Table};
use jitquant_runtime::{Binary, Builder, Call, Input, Op, Product, Store, Weight};

struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: it hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_run_allocates_nothing() {
    let q = QParams::new(0.1, 100);
    let mut builder = Builder::default();
    let x = builder.input();
    let weight = builder.weight();
    let bytes = builder.step(Op::Quantize(q), &[x]).unwrap();
    let store = Store::Bytes { to: q, min: 0, max: 255, residual: None, table: None };
    let conv = builder.step(Op::Conv(Product { weight, x: q, store }), &[bytes]).unwrap();
    let mean = builder.step(Op::AdaptiveAvgPool { sizes: vec![1, 1], zero_point: 100 }, &[conv]).unwrap();
    let form = Binary { a: q, b: q, to: q, min: 0, max: 255 };
    let scaled = builder.step(Op::Mul(form), &[conv, mean]).unwrap();
    let table = Some(Box::new(Table::requantize(q, QParams::new(0.2, 90))));
    let both = builder.step(Op::Cat { axis: 1, tables: vec![None, table] }, &[scaled, conv]).unwrap();
    let y = builder.step(Op::Dequantize(q), &[both]).unwrap();
    let program = builder.finish(&[y]).unwrap();

    let shape = ConvShape { kernel: [1, 3, 3], padding: [0, 1, 1], ..ConvShape::new(4, 8) };
    let packed = PackedConv::new(Isa::current(), &vec![3; shape.weight_len()], shape, &[]).unwrap();
    let weights = [Weight::Conv { packed: &packed, dimensions: 2, scales: &[0.01], bias: &[] }];
    let values = vec![0.5f32; 4 * 64];
    let inputs = [Input::floats(&values, &[1, 4, 8, 8], &[256, 64, 8, 1])];
    let call = Call { inputs: &inputs, numbers: &[], weights: &weights };
    let mut out = vec![0u8; 16 * 64 * 4];
    let mut run = || {
        let plan = program.plan(&call, &Serial).unwrap();
        program.run(&plan, &call, &mut [&mut out], &Serial).unwrap();
    };
    run();
    run();
    let before = COUNT.get();
    (0..10).for_each(|_| run());
    assert_eq!(COUNT.get() - before, 0);
}
