//! Folders of PNG and JPEG images, decoded batch by batch.

use std::fs;
use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::imageops::{self, FilterType};
use image::{ColorType, DynamicImage, GrayImage, ImageReader, RgbImage};
use rayon::prelude::*;

use super::array::ArrayData;
use super::image_options::{ImageOptions, Normalization, Resize, Size};

/// File name endings that are taken for images.
pub(super) const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];

/// An image whose longer side would become longer than this is refused before its pixels fill the memory.
const MAX_RESIZED_SIDE: u32 = 1 << 16;

/// Images that become the samples of one input.
#[derive(Debug)]
pub(super) struct ImageSet {
    files: Vec<PathBuf>,
    resize: Option<Resize>,
    grayscale: bool,
    normalization: Vec<Normalization>,
    /// What every image measures in the end.
    size: Size,
}

impl ImageSet {
    /// All images in a folder and the folders in it, in the order of their paths. Hidden files and folders, and links
    /// to folders, are passed over.
    ///
    /// # Errors
    /// If there is no image, or if the options leave images of different sizes.
    pub fn in_folder(folder: &Path, options: &ImageOptions) -> Result<Self> {
        let mut files = Vec::new();
        let mut other = 0;
        list_images(folder, &mut files, &mut other)?;
        if files.is_empty() {
            let accepted = EXTENSIONS.map(|e| format!(".{e}")).join(", ");
            match other {
                0 => bail!("the folder is empty; put images into it ({accepted})"),
                _ => bail!("the folder holds other files ({other} of them), but no image ({accepted})"),
            }
        }
        files.sort();
        Self::of_files(files, options)
    }

    /// One image.
    pub fn of_file(file: &Path, options: &ImageOptions) -> Result<Self> {
        Self::of_files(vec![file.to_owned()], options)
    }

    fn of_files(files: Vec<PathBuf>, options: &ImageOptions) -> Result<Self> {
        let size = match (options.crop, options.resize) {
            (Some(size), _) | (None, Some(Resize::Exact(size))) => size,
            (None, Some(Resize::ShorterSide(side))) => Size { height: side, width: side },
            (None, None) => same_size(&files)?,
        };
        let normalization = options.normalization()?;
        Ok(Self { files, resize: options.resize, grayscale: options.grayscale, normalization, size })
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Channels, height, width.
    pub fn sample_shape(&self) -> Vec<usize> {
        vec![self.normalization.len(), self.size.height as usize, self.size.width as usize]
    }

    /// Decodes the images in `range`, on all cores.
    pub fn read(&self, range: Range<usize>) -> Result<ArrayData> {
        let sample_len = self.sample_shape().iter().product::<usize>();
        let mut out = vec![0.0; range.len() * sample_len];
        self.files[range].par_iter().zip(out.par_chunks_mut(sample_len)).try_for_each(|(file, out)| {
            self.read_image(file, out).with_context(|| format!("image {}", file.display()))
        })?;
        Ok(ArrayData::F32(out))
    }

    fn read_image(&self, file: &Path, out: &mut [f32]) -> Result<()> {
        let image = decode(file)?;
        let from = Size { height: image.height(), width: image.width() };
        let to = self.resize.map_or(from, |resize| resize.apply(from));
        ensure!(
            to.height.max(to.width) <= MAX_RESIZED_SIDE,
            "{}x{} (height x width) is so narrow that --resize would make it {}x{}",
            from.height,
            from.width,
            to.height,
            to.width
        );
        ensure!(
            to.height >= self.size.height && to.width >= self.size.width,
            "{}x{} (height x width) is too small to crop {}x{} out of it; give a larger --resize",
            to.height,
            to.width,
            self.size.height,
            self.size.width
        );
        // FilterType::Triangle widens with the reduction: torchvision's bilinear interpolation with antialiasing.
        let pixels = if self.grayscale {
            let mut image = into_brightness(image);
            if to != from {
                image = imageops::resize(&image, to.width, to.height, FilterType::Triangle);
            }
            image.into_raw()
        } else {
            let mut image = image.into_rgb8();
            if to != from {
                image = imageops::resize(&image, to.width, to.height, FilterType::Triangle);
            }
            image.into_raw()
        };
        self.crop_and_normalize(&pixels, to, out);
        Ok(())
    }

    /// From rows of interleaved channels to one plane a channel.
    fn crop_and_normalize(&self, pixels: &[u8], from: Size, out: &mut [f32]) {
        let channels = self.normalization.len();
        let (height, width) = (self.size.height as usize, self.size.width as usize);
        let top = center(from.height as usize - height);
        let left = center(from.width as usize - width);
        let row_len = from.width as usize * channels;
        for (channel, plane) in out.chunks_exact_mut(height * width).enumerate() {
            let Normalization { mean, std } = self.normalization[channel];
            for (row, out) in pixels.chunks_exact(row_len).skip(top).zip(plane.chunks_exact_mut(width)) {
                let values = row[left * channels + channel..].iter().step_by(channels);
                for (out, &value) in out.iter_mut().zip(values) {
                    *out = (f32::from(value) / 255.0 - mean) / std;
                }
            }
        }
    }
}

/// Where a center crop begins that leaves `rest` pixels over: half of them, a half pixel rounded to the even number,
/// as torchvision's `center_crop` has it from Python's `round`.
fn center(rest: usize) -> usize {
    let half = rest / 2;
    half + (rest % 2) * (half % 2)
}

fn list_images(folder: &Path, images: &mut Vec<PathBuf>, other: &mut usize) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read folder {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read folder {}", folder.display()))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            list_images(&path, images, other)?;
        } else if is_image(&path) && path.is_file() {
            images.push(path);
        } else {
            *other += 1;
        }
    }
    Ok(())
}

/// Whether the file name ends as those of images do.
pub(super) fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    EXTENSIONS.iter().any(|e| extension.eq_ignore_ascii_case(e))
}

/// The size that all images have.
fn same_size(files: &[PathBuf]) -> Result<Size> {
    let size_of = |file: &PathBuf| -> Result<Size> {
        let in_file = || format!("image {}", file.display());
        let reader = ImageReader::open(file).with_context(in_file)?.with_guessed_format().with_context(in_file)?;
        let (width, height) = reader.into_dimensions().with_context(in_file)?;
        Ok(Size { height, width })
    };
    let first = size_of(&files[0])?;
    for file in &files[1..] {
        let size = size_of(file)?;
        ensure!(
            size == first,
            "images differ in size: {} is {}x{}, {} is {}x{} (height x width); give --resize",
            files[0].display(),
            first.height,
            first.width,
            file.display(),
            size.height,
            size.width
        );
    }
    Ok(first)
}

fn decode(file: &Path) -> Result<DynamicImage> {
    let bytes = fs::read(file)?;
    ensure!(!bytes.is_empty(), "the file is empty");
    ensure!(!is_truncated_jpeg(&bytes), "truncated: the JPEG data has no end");
    Ok(ImageReader::new(Cursor::new(&bytes)).with_guessed_format()?.decode()?)
}

/// JPEG decoders fill the missing part of a truncated image with grey and say nothing. After the last start of scan
/// (FF DA) an image that is whole has an end (FF D9): inside of compressed data FF is always followed by 00 or a
/// restart marker (ITU-T T.81, B.1.1.5).
fn is_truncated_jpeg(bytes: &[u8]) -> bool {
    let is = |marker: u8| move |pair: &[u8]| pair == [0xff, marker];
    bytes.starts_with(&[0xff, 0xd8])
        && match bytes.windows(2).rposition(is(0xda)) {
            Some(start_of_scan) => !bytes[start_of_scan..].windows(2).any(is(0xd9)),
            None => true,
        }
}

/// One channel. Colours are weighted as ITU-R BT.601 does, like Pillow's `convert("L")`; the image crate's own
/// conversion uses other weights (BT.709) than the models were trained with.
fn into_brightness(image: DynamicImage) -> GrayImage {
    match image.color() {
        ColorType::L8 | ColorType::La8 | ColorType::L16 | ColorType::La16 => image.into_luma8(),
        _ => {
            let image: RgbImage = image.into_rgb8();
            GrayImage::from_fn(image.width(), image.height(), |x, y| {
                let [r, g, b] = image.get_pixel(x, y).0.map(u32::from);
                image::Luma([((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8])
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use tempfile::TempDir;

    use super::*;

    fn save(folder: &TempDir, name: &str, image: &RgbImage) -> PathBuf {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image.save(&path).unwrap();
        path
    }

    fn floats(data: ArrayData) -> Vec<f32> {
        match data {
            ArrayData::F32(v) => v,
            other => panic!("{other:?}"),
        }
    }

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, ((x + y) * 3) as u8]))
    }

    #[test]
    fn planes_are_scaled_and_normalized() {
        let folder = TempDir::new().unwrap();
        save(
            &folder,
            "a.png",
            &RgbImage::from_fn(2, 1, |x, _| if x == 0 { Rgb([255, 0, 51]) } else { Rgb([0, 102, 0]) }),
        );
        let options = ImageOptions { mean: vec![0.5, 0.0, 0.0], std: vec![0.5, 1.0, 2.0], ..Default::default() };
        let set = ImageSet::in_folder(folder.path(), &options).unwrap();
        assert_eq!(set.sample_shape(), [3, 1, 2]);
        assert_eq!(floats(set.read(0..1).unwrap()), [1.0, -1.0, 0.0, 0.4, 0.1, 0.0]);
    }

    #[test]
    fn folders_are_read_in_the_order_of_paths() {
        let folder = TempDir::new().unwrap();
        let plain = |value: u8| RgbImage::from_pixel(1, 1, Rgb([value; 3]));
        save(&folder, "b.png", &plain(1));
        save(&folder, "a/z.PNG", &plain(0));
        save(&folder, "c.jpeg", &plain(2));
        save(&folder, ".hidden.png", &plain(9));
        fs::write(folder.path().join("readme.txt"), "not an image").unwrap();
        let options = ImageOptions { grayscale: true, ..Default::default() };
        let set = ImageSet::in_folder(folder.path(), &options).unwrap();
        let values: Vec<f32> = floats(set.read(0..3).unwrap()).iter().map(|v| v * 255.0).collect();
        assert_eq!(values, [0.0, 1.0, 2.0]);
        assert!(set.files[0].ends_with("a/z.PNG"));
    }

    #[test]
    fn the_center_is_cropped_after_resizing() {
        let folder = TempDir::new().unwrap();
        save(&folder, "a.png", &gradient(21, 14));
        let crop = |resize: Option<&str>, crop: Option<&str>| {
            let options = ImageOptions {
                resize: resize.map(|s| s.parse().unwrap()),
                crop: crop.map(|s| s.parse().unwrap()),
                ..Default::default()
            };
            let set = ImageSet::in_folder(folder.path(), &options).unwrap();
            (set.sample_shape(), floats(set.read(0..1).unwrap()))
        };
        let (shape, values) = crop(None, Some("4x6"));
        assert_eq!(shape, [3, 4, 6]);
        // (21 - 6) / 2 = 7.5, rounded to even: 8; (14 - 4) / 2 = 5.
        assert_eq!([values[0] * 255.0, values[24] * 255.0], [56.0, 25.0]);
        assert_eq!(crop(Some("7"), None).0, [3, 7, 7]);
        assert_eq!(crop(Some("7x9"), None).0, [3, 7, 9]);
        assert_eq!(crop(Some("10"), Some("8")).0, [3, 8, 8]);
    }

    #[test]
    fn half_pixels_are_rounded_to_even() {
        assert_eq!([0, 1, 2, 3, 4, 5, 7].map(center), [0, 0, 1, 2, 2, 2, 4]);
    }

    #[test]
    fn colours_are_weighted_as_pillow_does() {
        let image = RgbImage::from_fn(3, 1, |x, _| Rgb([0, 1, 2].map(|c| if c == x { 255 } else { 0 })));
        assert_eq!(into_brightness(DynamicImage::ImageRgb8(image)).into_raw(), [76, 150, 29]);
    }

    #[test]
    fn transparency_and_sixteen_bits_are_reduced() {
        let folder = TempDir::new().unwrap();
        let rgba = image::RgbaImage::from_pixel(1, 1, image::Rgba([10, 20, 30, 0]));
        rgba.save(folder.path().join("a.png")).unwrap();
        let deep: image::ImageBuffer<Rgb<u16>, Vec<u16>> = image::ImageBuffer::from_pixel(1, 1, Rgb([0, 32896, 65535]));
        deep.save(folder.path().join("b.png")).unwrap();
        let set = ImageSet::in_folder(folder.path(), &ImageOptions::default()).unwrap();
        let values: Vec<f32> = floats(set.read(0..2).unwrap()).iter().map(|v| (v * 255.0).round()).collect();
        assert_eq!(values, [10.0, 20.0, 30.0, 0.0, 128.0, 255.0]);
    }

    #[test]
    fn different_sizes_need_resize() {
        let folder = TempDir::new().unwrap();
        save(&folder, "a.png", &gradient(8, 6));
        save(&folder, "b.jpg", &gradient(7, 6));
        let message = ImageSet::in_folder(folder.path(), &ImageOptions::default()).unwrap_err().to_string();
        assert!(message.contains("a.png is 6x8") && message.contains("b.jpg is 6x7"), "{message}");
        assert!(message.ends_with("give --resize"), "{message}");
        let options = ImageOptions { resize: Some(Resize::ShorterSide(4)), ..Default::default() };
        assert_eq!(ImageSet::in_folder(folder.path(), &options).unwrap().len(), 2);
    }

    #[test]
    fn a_crop_larger_than_the_image_names_both_sizes() {
        let folder = TempDir::new().unwrap();
        save(&folder, "a.png", &gradient(8, 6));
        let options = ImageOptions { crop: Some("7".parse().unwrap()), ..Default::default() };
        let message = format!("{:#}", ImageSet::in_folder(folder.path(), &options).unwrap().read(0..1).unwrap_err());
        assert!(message.contains("a.png: 6x8 (height x width) is too small to crop 7x7"), "{message}");
    }

    #[test]
    fn an_image_that_resizing_would_blow_up_is_refused() {
        let folder = TempDir::new().unwrap();
        let path = save(&folder, "a.png", &RgbImage::new(1, 300));
        let options = ImageOptions { resize: Some(Resize::ShorterSide(256)), ..Default::default() };
        let message = format!("{:#}", ImageSet::of_file(&path, &options).unwrap().read(0..1).unwrap_err());
        assert!(
            message.ends_with("300x1 (height x width) is so narrow that --resize would make it 76800x256"),
            "{message}"
        );
    }

    #[test]
    fn truncated_images_are_errors_that_name_the_file() {
        let folder = TempDir::new().unwrap();
        for name in ["a.jpg", "a.png"] {
            let path = save(&folder, name, &gradient(40, 30));
            let whole = fs::read(&path).unwrap();
            for len in [0, 1, 10, whole.len() / 2, whole.len() * 3 / 4, whole.len() - 20] {
                fs::write(&path, &whole[..len]).unwrap();
                let options = ImageOptions { resize: Some(Resize::ShorterSide(8)), ..Default::default() };
                let set = ImageSet::of_file(&path, &options).unwrap();
                let message = format!("{:#}", set.read(0..1).unwrap_err());
                assert!(message.contains(name), "{name}, {len} of {} bytes: {message}", whole.len());
            }
        }
    }

    #[test]
    fn bytes_after_the_end_of_a_jpeg_do_no_harm() {
        let folder = TempDir::new().unwrap();
        let path = save(&folder, "a.jpg", &gradient(40, 30));
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(&[0; 100]);
        fs::write(&path, bytes).unwrap();
        ImageSet::of_file(&path, &ImageOptions::default()).unwrap().read(0..1).unwrap();
    }

    #[test]
    fn folders_without_images_say_what_is_accepted() {
        let folder = TempDir::new().unwrap();
        let message = ImageSet::in_folder(folder.path(), &ImageOptions::default()).unwrap_err().to_string();
        assert_eq!(message, "the folder is empty; put images into it (.png, .jpg, .jpeg)");
        fs::write(folder.path().join("a.webp"), "x").unwrap();
        let message = ImageSet::in_folder(folder.path(), &ImageOptions::default()).unwrap_err().to_string();
        assert_eq!(message, "the folder holds other files (1 of them), but no image (.png, .jpg, .jpeg)");
    }
}
