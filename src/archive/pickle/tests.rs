//! Single pickles, opcode by opcode.

use super::*;

/// A pickle of these opcodes, with a record `0` of 24 bytes beside it.
fn run(opcodes: &[u8]) -> Result<Root, String> {
    let bytes = [b"\x80\x02", opcodes].concat();
    check(&bytes, |record| (record == "0").then_some(24)).map(|(root, _)| root)
}

const STORAGE: &[u8] = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ";

/// A tensor of 2 x 3 floats.
fn tensor(sizes: &[u8]) -> Vec<u8> {
    [b"ctorch._utils\n_rebuild_tensor_v2\n(", STORAGE, b"K\x00", sizes, b"\x89ccollections\nOrderedDict\n)RtR"].concat()
}

#[test]
fn what_libtorch_writes_passes() {
    for (opcodes, root) in [
        (&b"(K\x01M\x02\x00J\x03\x00\x00\x00\x8a\x08\x04\x00\x00\x00\x00\x00\x00\x00t."[..], Root::Tuple),
        (b"N.", Root::Other),
        (b"c__torch__.a\nB\n)\x81}(X\x01\x00\x00\x00wK\x01ub.", Root::Object),
        (b"c__torch__.a\nMode\nK\x01R.", Root::Object),
        (b"c__torch__.a\nB\nq\x00)\x81}bh\x00)\x81}b\x86.", Root::Tuple),
        (b"ctorch.jit._pickle\nbuild_intlist\n](K\x01K\x02e\x85R.", Root::Other),
        (
            b"ctorch.jit._pickle\nrestore_type_tag\n}(X\x01\x00\x00\x00aK\x01uX\x0e\x00\x00\x00Dict[str, int]\x86R.",
            Root::Other,
        ),
        (b"ctorch\ndevice\nX\x03\x00\x00\x00cpu\x85R\x85.", Root::Tuple),
        (&[&tensor(b"K\x02K\x03\x86K\x03K\x01\x86"), &b"\x85."[..]].concat(), Root::Tuple),
        (&[&tensor(b"))"), &b"\x85."[..]].concat(), Root::Tuple),
    ] {
        assert_eq!(run(opcodes), Ok(root), "{}", String::from_utf8_lossy(opcodes));
    }
}

#[test]
fn what_libtorch_would_believe_is_refused() {
    for (opcodes, why) in [
        // A function's number is an integer to libtorch.
        (&b"K\x00)R."[..], "no function"),
        (b"c__torch__.a\nB\n.", "function alone"),
        (b"c__torch__.a\nB\n\x85.", "function stands where"),
        (b"K\x00)\x81.", "no class"),
        // It reads two values at a time.
        (b"}(K\x01u.", "key without a value"),
        (b"(K\x01d.", "key without a value"),
        (b"K\x01K\x02s.", "no dictionary"),
        (b"K\x01K\x02K\x03s.", "no dictionary"),
        (b"N(K\x01e.", "no list"),
        (b"t.", "a mark is missing"),
        (b"(.", "missing on the stack"),
        (b"N(.", "missing on the stack"),
        (b"NN.", "left over"),
        (b"(N0.", "none that libtorch writes"),
        (b"\x86.", "more values than there are"),
        (b"N(\x85.", "missing on the stack"),
        (b"h\x00.", "where nothing is"),
        (b"Nr\xff\xff\xff\x7f.", "of the memo"),
        (b"q\x00.", "nothing is there"),
        (b"X\xff\xff\xff\x7fabc.", "ends in the middle"),
        (b"K", "ends in the middle"),
        (b"N", "ends in the middle"),
        (b"cos\nsystem\n.", "'os.system'"),
        (b"ctorch\nNoSuchStorage\n.", "NoSuchStorage"),
        (b"c__torch__", "a name has no end"),
        (b"c__to rch__\nA\n.", "what no name has"),
        (b"ctorch.jit._pickle\nbuild_intlist\n](Ne\x85R.", "another type"),
        (b"ctorch.jit._pickle\nrestore_type_tag\n}X\x09\x00\x00\x00List[int]\x86R.", "no type of a list"),
        (b"\x8a\x01\x05.", "integer of 1 bytes"),
        // A list in itself.
        (b"]q\x00(h\x00e.", "holds itself"),
    ] {
        let refusal = run(opcodes).unwrap_err();
        assert!(refusal.contains(why), "{}: {refusal}", String::from_utf8_lossy(opcodes));
    }
}

#[test]
fn tensors_lie_in_their_records() {
    for (sizes, why) in [
        (&b"K\x02K\x04\x86K\x04K\x01\x86"[..], "beyond the 6 elements"),
        (b"K\x07\x85K\x01\x85", "beyond the 6 elements"),
        (b"K\x02\x85)", "as many of these"),
        (b"J\xff\xff\xff\xff\x85K\x01\x85", "negative"),
        (b"N)", "no tuple"),
        (b"N\x85K\x01\x85", "no integer"),
    ] {
        let refusal = run(&[&tensor(sizes), &b"\x85."[..]].concat()).unwrap_err();
        assert!(refusal.contains(why), "{refusal}");
    }
    let short = [b"\x80\x02", STORAGE, b"\x85."].concat();
    let refusal = check(&short, |_| Some(23)).unwrap_err();
    assert!(refusal.contains("24 bytes, and the record that holds them has 23"), "{refusal}");
    assert!(check(&short, |_| None).unwrap_err().contains("record '0'"));
}

#[test]
fn deep_and_endless_values_are_refused() {
    let deep = |depth: usize| [&b")".to_vec()[..], &vec![0x85; depth], b"."].concat();
    run(&deep(400)).unwrap();
    assert!(run(&deep(1000)).unwrap_err().contains("more than 500 deep"));
    // Each level holds the one before twice: 2^40 ways down.
    let shared: Vec<u8> = (0..40u8).flat_map(|level| [b'q', level, b'h', level, 0x86]).collect();
    assert!(run(&[b")", &shared[..], b"."].concat()).unwrap_err().contains("more ways"));
}
