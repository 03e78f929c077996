//! Attention, with PyTorch's fast path and without, and recurrent layers.

use jitquant::Quantizer;
use jitquant::pass::WeightOnly;

use crate::{file, float, listed, quantized, ways};

const TOKENS: &[i64] = &[4, 6, 16];
const MEMORY: &[i64] = &[4, 9, 16];

/// How many linear layers are INT8; attention itself stays in float in each.
fn check(name: &str, shapes: &[&[i64]], linear: usize, in_float: &[&str]) {
    let model = file(name);
    for (way, quantizer) in ways() {
        let (_, report) = quantized(&model, shapes, quantizer.clone());
        assert_eq!(float(&report), in_float, "{name}, {way}");
        assert_eq!(report.quantized_layers, linear, "{name}, {way}: {report:?}");
        let reported: Vec<_> =
            report.float.iter().map(|layer| (layer.operator.clone(), layer.reason.clone())).collect();
        let mut inspected = listed(&model, &quantizer);
        inspected.truncate(reported.len());
        assert_eq!(inspected, reported, "{name}, {way}");
    }
}

#[test]
fn attention_of_a_sequence_to_itself() {
    check("attention_scripted", &[TOKENS], 3, &["attention"]);
    check("attention_traced", &[TOKENS], 3, &["attention"]);
}

#[test]
fn attention_of_a_sequence_to_another() {
    check("cross_traced", &[TOKENS, MEMORY], 4, &["attention"]);
}

#[test]
fn attention_with_sizes_of_its_own_for_keys_and_values() {
    check("cross_sizes_scripted", &[TOKENS, &[4, 9, 12]], 5, &["attention"]);
}

#[test]
fn scripted_attention_keeps_both_ways_of_projection() {
    // Whether the sequences are one tensor is known when it runs.
    let model = file("cross_scripted");
    for (_, quantizer) in ways() {
        let (_, report) = quantized(&model, &[TOKENS, MEMORY], quantizer);
        assert!(report.quantized_layers >= 4, "{report:?}");
    }
}

#[test]
fn encoder_layers() {
    check("encoder_scripted", &[TOKENS], 5, &["attention"]);
    check("encoder_traced", &[TOKENS], 5, &["attention"]);
    check("masked_traced", &[TOKENS], 4, &["attention"]);
}

#[test]
fn decoder_layers_take_pieces_of_a_constant() {
    check("decoder_traced", &[TOKENS, MEMORY], 8, &["attention"]);
    let small = Quantizer::weight_only(WeightOnly::Bits8);
    let (_, report) = quantized(&file("decoder_traced"), &[TOKENS, MEMORY], small);
    assert_eq!(report.quantized_operators["linear_8bit"], 8);
}

#[test]
fn static_convolutions_and_dynamic_recurrent_layers_in_one_model() {
    for name in ["crnn_scripted", "crnn_traced"] {
        for (way, quantizer) in ways().into_iter().take(2) {
            let (_, report) = quantized(&file(name), &[&[2, 1, 8, 20]], quantizer);
            assert_eq!(float(&report), [""; 0], "{name}, {way}");
            assert_eq!(report.quantized_operators["quantized_lstm"], 1);
            assert_eq!(report.quantized_layers, 3, "{name}, {way}: {report:?}");
        }
    }
}

#[test]
fn recurrent_layers_without_a_kernel_say_so() {
    for (name, operator, why) in
        [("projection_scripted", "lstm", "proj_size"), ("plain_scripted", "rnn", "torch.nn.RNN")]
    {
        for (way, quantizer) in ways() {
            let (_, report) = quantized(&file(name), &[&[7, 4, 8]], quantizer);
            let [layer] = &report.float[..] else { panic!("{name}, {way}: {report:?}") };
            assert_eq!((layer.operator.as_str(), layer.path.as_str()), (operator, "recurrent"), "{name}, {way}");
            assert!(layer.reason.contains(why), "{}", layer.reason);
            assert_eq!(report.quantized_layers, 1);
        }
    }
}

#[test]
fn scripted_cells() {
    check("cells_scripted", &[&[4, 8]], 3, &[]);
}
