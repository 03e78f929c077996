//! Whole datasets, from files to batches.

use std::io::{Cursor, Write};
use std::num::NonZeroUsize;

use image::{Rgb, RgbImage};
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::super::npy::tests::{npy_bytes, npy_counting};
use super::super::{Array, ArrayData, ImageOptions};
use super::*;

/// A folder of test data that goes when it is dropped.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn npz(&self, name: &str, arrays: &[(&str, Vec<u8>)]) -> PathBuf {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for (array, bytes) in arrays {
            writer.start_file(format!("{array}.npy"), SimpleFileOptions::default()).unwrap();
            writer.write_all(bytes).unwrap();
        }
        self.write(name, &writer.finish().unwrap().into_inner())
    }

    fn images(&self, name: &str, values: &[u8]) -> PathBuf {
        let folder = self.0.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (i, &value) in values.iter().enumerate() {
            RgbImage::from_pixel(2, 2, Rgb([value; 3])).save(folder.join(format!("{i:04}.png"))).unwrap();
        }
        folder
    }

    /// `name=path` for a file of this folder.
    fn named(&self, input: &str, file: &str) -> PathBuf {
        format!("{input}={}", self.0.path().join(file).display()).into()
    }
}

fn npy<T>(descr: &str, shape: &str, values: &[T], bytes: impl Fn(&T) -> Vec<u8>) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}\n");
    npy_bytes(&header, &values.iter().flat_map(bytes).collect::<Vec<u8>>())
}

fn npy_i64(values: &[i64]) -> Vec<u8> {
    npy("<i8", &format!("{},", values.len()), values, |v| v.to_le_bytes().to_vec())
}

fn npy_f64(values: &[f64]) -> Vec<u8> {
    npy("<f8", &format!("{},", values.len()), values, |v| v.to_le_bytes().to_vec())
}

fn open(paths: &[PathBuf]) -> Result<Dataset> {
    Dataset::open(paths, &DataOptions::default())
}

fn error(paths: &[PathBuf]) -> String {
    format!("{:#}", open(paths).unwrap_err())
}

fn floats(array: &Array) -> &[f32] {
    match &array.data {
        ArrayData::F32(v) => v,
        other => panic!("{other:?}"),
    }
}

fn described(dataset: &Dataset) -> Vec<String> {
    dataset.inputs().map(ToString::to_string).collect()
}

#[test]
fn batches_cover_all_samples_of_all_files_once() {
    let folder = Folder::new();
    let paths = [
        folder.npz("a.npz", &[("x", npy_counting(&[3, 2])), ("y", npy_i64(&[0, 1, 2]))]),
        folder.npz("b.npz", &[("y", npy_i64(&[10])), ("x", npy_counting(&[1, 2]))]),
        folder.npz("c.npz", &[("x", npy_counting(&[3, 2])), ("y", npy_i64(&[20, 21, 22]))]),
    ];
    let dataset = open(&paths).unwrap();
    assert_eq!(dataset.len(), 7);
    assert_eq!(described(&dataset), ["x: float32 [samples, 2]", "y: int64 [samples]"]);
    for batch_size in 1..=8 {
        let batches = dataset.batches(NonZeroUsize::new(batch_size).unwrap());
        assert_eq!(batches.len(), 7usize.div_ceil(batch_size));
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for batch in batches {
            let batch = batch.unwrap();
            assert_eq!(batch[0].shape, [batch[1].shape[0], 2]);
            x.extend_from_slice(floats(&batch[0]));
            let ArrayData::I64(values) = &batch[1].data else { panic!("{batch:?}") };
            y.extend_from_slice(values);
        }
        assert_eq!(x, [0., 1., 2., 3., 4., 5., 0., 1., 0., 1., 2., 3., 4., 5.]);
        assert_eq!(y, [0, 1, 2, 10, 20, 21, 22]);
    }
}

#[test]
fn a_batch_outside_of_the_data_is_an_error() {
    let folder = Folder::new();
    let dataset = open(&[folder.write("x.npy", &npy_counting(&[3]))]).unwrap();
    assert_eq!(dataset.batch(2..4).unwrap_err().to_string(), "samples 2..4 of 3 do not exist");
    assert!(dataset.batch(1..1).is_err());
}

#[test]
fn npy_files_without_names_follow_one_another() {
    let folder = Folder::new();
    let paths = [folder.write("part1.npy", &npy_counting(&[2, 3])), folder.write("part2.npy", &npy_counting(&[1, 3]))];
    let dataset = open(&paths).unwrap();
    assert_eq!(described(&dataset), ["part1: float32 [samples, 3]"]);
    assert_eq!(floats(&dataset.batch(1..3).unwrap()[0]), [3.0, 4.0, 5.0, 0.0, 1.0, 2.0]);
}

#[test]
fn files_with_names_are_inputs_of_their_own() {
    let folder = Folder::new();
    folder.write("1.npy", &npy_counting(&[2, 3]));
    folder.write("2.npy", &npy_counting(&[2]));
    folder.write("3.npy", &npy_counting(&[1, 3]));
    folder.write("4.npy", &npy_counting(&[1]));
    let paths = [("b", "1.npy"), ("a", "2.npy"), ("b", "3.npy"), ("a", "4.npy")].map(|(n, f)| folder.named(n, f));
    let mut dataset = open(&paths).unwrap();
    dataset.bind(&["a", "b"], 2).unwrap();
    let batch = dataset.batch(1..3).unwrap();
    assert_eq!(floats(&batch[0]), [1.0, 0.0]);
    assert_eq!(floats(&batch[1]), [3.0, 4.0, 5.0, 0.0, 1.0, 2.0]);
    assert_eq!(error(&paths[..3]), "every input needs the same number of samples, but `b` has 3, `a` has 2");
}

#[test]
fn images_can_have_labels_in_another_file() {
    let folder = Folder::new();
    let images = folder.images("photos", &[0, 51, 102]);
    folder.write("classes.npy", &npy_i64(&[7, 8, 9]));
    let mut dataset = open(&[images, folder.named("labels", "classes.npy")]).unwrap();
    assert_eq!(dataset.take_labels("labels").unwrap(), [7, 8, 9]);
    assert_eq!(described(&dataset), ["images: float32 [samples, 3, 2, 2]"]);
    let batch = dataset.batch(1..2).unwrap();
    assert_eq!(batch[0].shape, [1, 3, 2, 2]);
    assert_eq!(floats(&batch[0]), [0.2; 12]);
}

#[test]
fn single_images_follow_one_another() {
    let folder = Folder::new();
    let images = folder.images("photos", &[0, 255]);
    let dataset = open(&[images.join("0001.png"), images.join("0000.png")]).unwrap();
    let sums: Vec<f32> = dataset.batch(0..2).unwrap().iter().map(|a| floats(a)[0] + floats(a)[12]).collect();
    assert_eq!(sums, [1.0]);
}

#[test]
fn a_file_may_have_an_equals_sign_in_its_name() {
    let folder = Folder::new();
    let dataset = open(&[folder.write("lr=0.1.npy", &npy_counting(&[2]))]).unwrap();
    assert_eq!(described(&dataset), ["lr=0.1: float32 [samples]"]);
}

#[test]
fn a_name_for_a_file_of_several_arrays_is_an_error() {
    let folder = Folder::new();
    folder.npz("a.npz", &[("x", npy_counting(&[2])), ("y", npy_counting(&[2]))]);
    assert!(error(&[folder.named("x", "a.npz")]).ends_with("names one input, but the file holds 2 arrays"));
}

#[test]
fn files_that_do_not_go_together_are_both_named() {
    let folder = Folder::new();
    let wide = folder.npz("wide.npz", &[("x", npy_counting(&[2, 3]))]);
    let narrow = folder.npz("narrow.npz", &[("x", npy_counting(&[2, 2]))]);
    let doubles = folder.npz("doubles.npz", &[("x", npy_f64(&[1.0]))]);
    let other = folder.npz("other.npz", &[("z", npy_counting(&[2, 3]))]);

    let message = error(&[wide.clone(), narrow]);
    assert!(message.contains("wide.npz has x: float32 [samples, 3], "), "{message}");
    assert!(message.contains("narrow.npz has x: float32 [samples, 2]"), "{message}");
    let message = error(&[wide.clone(), doubles]);
    assert!(message.contains("doubles.npz has x: float64 [samples]"), "{message}");
    let message = error(&[wide, other]);
    assert!(message.contains("wide.npz has `x`") && message.contains("other.npz has `z`"), "{message}");
}

#[test]
fn different_numbers_of_samples_are_listed() {
    let folder = Folder::new();
    let path = folder.npz("a.npz", &[("x", npy_counting(&[4, 2])), ("y", npy_counting(&[3]))]);
    assert!(error(&[path]).ends_with("must be the same everywhere, but `x` has 4, `y` has 3"));
}

#[test]
fn empty_data_is_an_error() {
    let folder = Folder::new();
    let no_samples = folder.write("a.npy", &npy_counting(&[0, 3]));
    assert!(error(&[no_samples]).ends_with("a.npy: array `a` has no samples: its shape is [0, 3]"));
    let no_elements = folder.write("b.npy", &npy_counting(&[3, 0]));
    assert!(error(&[no_elements]).ends_with("array `b` is empty: its shape is [3, 0]"));
    let scalar = folder.write("c.npy", &npy_counting(&[]));
    assert!(error(&[scalar]).contains("array `c` is a single number"));
    assert_eq!(error(&[]), "no data given");
    let empty = folder.write("d.npz", b"");
    assert!(error(&[empty]).contains("d.npz: not a .npz archive, or a truncated one"));
}

#[test]
fn a_number_goes_to_every_batch() {
    let folder = Folder::new();
    let path = folder.npz("a.npz", &[("rate", npy_counting(&[])), ("x", npy_counting(&[5, 2]))]);
    let dataset = open(&[path]).unwrap();
    assert_eq!(dataset.len(), 5);
    for batch in dataset.batches(NonZeroUsize::new(2).unwrap()) {
        let batch = batch.unwrap();
        assert_eq!((batch[0].shape.len(), batch[0].data.len(), batch[1].shape[1]), (0, 1, 2));
    }
    let only = folder.npz("b.npz", &[("rate", npy_counting(&[]))]);
    assert!(error(&[only]).contains("array `rate` is a single number"));
}

#[test]
fn missing_and_unknown_files_say_so() {
    let folder = Folder::new();
    let message = error(&[folder.0.path().join("none.npz")]);
    assert!(message.contains("none.npz: cannot open: No such file"), "{message}");
    let message = error(&[folder.named("x", "none.npy")]);
    assert!(message.contains("none.npy: cannot open"), "{message}");
    let message = error(&[folder.write("a.csv", b"1,2")]);
    assert!(message.contains("a .csv file is not read as data. DATA is .npz, .npy, .safetensors"), "{message}");
    let message = error(&[folder.write("a.pt", b"PK")]);
    assert!(message.contains("numpy.savez"), "{message}");
    let message = error(&[folder.write("Makefile", b"all:")]);
    assert!(message.contains("a file without extension"), "{message}");
}

#[test]
fn nan_is_found_with_its_file_and_the_sample_within_that_file() {
    let folder = Folder::new();
    let good = folder.write("good.npy", &npy_f64(&[1.0, 2.0, 3.0]));
    let bad = folder.write("bad.npy", &npy_f64(&[1.0, f64::NAN]));
    let dataset = open(&[good, bad]).unwrap();
    dataset.batch(0..4).unwrap();
    let message = format!("{:#}", dataset.batch(2..5).unwrap_err());
    assert!(message.contains("bad.npy: array `good` holds NaN in sample 1,"), "{message}");
}

#[test]
fn labels_are_taken_from_every_integral_array() {
    let folder = Folder::new();
    let x = || ("x", npy_counting(&[3, 2]));
    let column = npy("<i4", "3,1", &[4i32, 5, 6], |v| v.to_le_bytes().to_vec());
    for (name, labels) in [("i64.npz", npy_i64(&[4, 5, 6])), ("f64.npz", npy_f64(&[4., 5., 6.])), ("i32.npz", column)] {
        let mut dataset = open(&[folder.npz(name, &[x(), ("digit", labels)])]).unwrap();
        assert_eq!(dataset.take_labels("digit").unwrap(), [4, 5, 6], "{name}");
        assert_eq!(described(&dataset), ["x: float32 [samples, 2]"]);
    }
}

#[test]
fn labels_that_are_none_are_errors() {
    let folder = Folder::new();
    let path = folder.npz("a.npz", &[("x", npy_counting(&[3, 2])), ("p", npy_f64(&[0.0, 1.0, 0.5]))]);
    let mut dataset = open(&[path]).unwrap();
    let message = dataset.take_labels("label").unwrap_err().to_string();
    assert!(message.starts_with("no array is called `label`; the data has\n  x: float32 [samples, 2]\n"), "{message}");
    let message = format!("{:#}", dataset.take_labels("p").unwrap_err());
    assert!(message.ends_with("`p` holds other values: sample 2 has the value 0.5"), "{message}");
    let message = dataset.take_labels("x").unwrap_err().to_string();
    assert!(message.contains("argmax"), "{message}");
    assert_eq!(dataset.inputs().len(), 2);

    let mut alone = open(&[folder.write("y.npy", &npy_i64(&[1]))]).unwrap();
    assert!(alone.take_labels("y").unwrap_err().to_string().contains("inputs for the model are missing"));
}

#[test]
fn conversions_leave_notes() {
    let folder = Folder::new();
    let half = npy("<f2", "2,", &[half::f16::from_f32(1.5), half::f16::from_f32(2.0)], |v| v.to_le_bytes().to_vec());
    let mut dataset = open(&[folder.npz("a.npz", &[("h", half), ("d", npy_f64(&[0.1, 0.2]))])]).unwrap();
    assert_eq!(dataset.notes().len(), 1);
    assert!(dataset.notes()[0].ends_with("a.npz: array `h` is read as float32 (float16 in the file)"));
    assert_eq!(described(&dataset), ["h: float32 [samples]", "d: float64 [samples]"]);

    dataset.convert_float64();
    assert_eq!(described(&dataset), ["h: float32 [samples]", "d: float32 [samples]"]);
    let batch = dataset.batch(0..2).unwrap();
    assert_eq!((floats(&batch[0]), floats(&batch[1])), (&[1.5, 2.0][..], &[0.1f32, 0.2][..]));
    assert_eq!(dataset.notes()[1], "array `d` was converted from float64 to float32");
}

#[test]
fn a_file_larger_than_memory_is_read_by_batches() {
    let folder = Folder::new();
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (16777216, 1024), }";
    let path = folder.write("x.npy", &npy_bytes(header, &1.5f32.to_le_bytes()));
    // 64 GiB of which the file system stores one block.
    let len = 10 + header.len() as u64 + (16777216 * 1024 * 4);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
    let dataset = open(&[path]).unwrap();
    assert_eq!(floats(&dataset.batch(0..2).unwrap()[0])[..2], [1.5, 0.0]);
    assert_eq!(dataset.batch(16777215..16777216).unwrap()[0].shape, [1, 1024]);
}

#[test]
fn image_options_without_images_leave_a_note() {
    let folder = Folder::new();
    let arrays = folder.write("x.npy", &npy_counting(&[2]));
    let images = folder.images("photos", &[0]);
    let images_options = ImageOptions { mean: vec![0.5], ..Default::default() };
    let options = DataOptions { images: images_options, ..Default::default() };
    assert!(Dataset::open(&[arrays], &options).unwrap().notes()[0].contains("do not change arrays"));
    assert!(Dataset::open(&[images], &options).unwrap().notes().is_empty());
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let folder = Folder::new();
    let path = folder.write("x.npy", &npy_counting(&[4, 100]));
    let dataset = open(std::slice::from_ref(&path)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(500).unwrap();
    let message = format!("{:#}", dataset.batch(0..4).unwrap_err());
    assert!(message.contains("x.npy: array `x`: the file ended early"), "{message}");
}
