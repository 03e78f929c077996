//! Random views of images: what a few photographs lack in number. The float model says what each view should give, so no
//! label has to fit.

use tch::{Kind, Tensor};

/// The smallest part of a side that a view shows.
const SMALLEST: f64 = 0.6;

/// The one input of a batch, where it is images: float32, `[samples, 1 or 3, height, width]`.
pub fn as_images(inputs: &[jitquant::ir::IValue]) -> Option<Tensor> {
    let [input] = inputs else { return None };
    let images = Tensor::from(input.as_tensor()?);
    let is_image = matches!(images.size()[..], [_, 1 | 3, height, width] if height >= 8 && width >= 8);
    (is_image && images.kind() == Kind::Float).then_some(images)
}

/// A view of each image: a part of it at the size of the whole, every second one mirrored; every fourth image as it is. What
/// image number `first + i` shows in a pass depends on these numbers only, so a run goes on after a kill as it would have,
/// however many processes there are.
pub fn views(images: &Tensor, first: usize, pass: usize) -> Tensor {
    let (height, width) = (images.size()[2], images.size()[3]);
    let view = |(index, image): (usize, Tensor)| {
        let mut random = Random::new(pass as u64, (first + index) as u64);
        if random.share() < 0.25 {
            return image;
        }
        let share = SMALLEST + (1.0 - SMALLEST) * random.share();
        let (rows, columns) = ((height as f64 * share) as i64, (width as f64 * share) as i64);
        let (top, left) = (random.below(height - rows + 1), random.below(width - columns + 1));
        let part = image.narrow(2, top, rows).narrow(3, left, columns);
        let part = part.upsample_bilinear2d([height, width], false, None, None);
        if random.share() < 0.5 { part.flip([3]) } else { part }
    };
    Tensor::cat(&images.split(1, 0).into_iter().enumerate().map(view).collect::<Vec<_>>(), 0)
}

/// A sequence of numbers that depends on two (splitmix64).
struct Random(u64);

impl Random {
    fn new(a: u64, b: u64) -> Self {
        let mut random = Self(a.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ b);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From 0 to below `count`.
    fn below(&mut self, count: i64) -> i64 {
        (self.share() * count as f64) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_depends_on_pass_and_number_only() {
        let images = Tensor::randn([6, 3, 16, 20], (Kind::Float, tch::Device::Cpu));
        let all = views(&images, 10, 2);
        assert_eq!(all.size(), images.size());
        assert_eq!(views(&images.narrow(0, 4, 2), 14, 2), all.narrow(0, 4, 2));
        assert_ne!(views(&images, 10, 3), all);
        let (least, most) = (images.min().double_value(&[]), images.max().double_value(&[]));
        assert!(
            all.min().double_value(&[]) >= least && all.max().double_value(&[]) <= most,
            "values stay in their range"
        );
    }
}
