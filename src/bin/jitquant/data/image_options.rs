//! The options that say how images become the tensor that a model expects.

use std::str::FromStr;

use anyhow::{Result, bail, ensure};

/// The group of these options in the help of a command.
const HEADING: &str = "Images";

// How PNG and JPEG images become the tensor that a model expects; without effect on arrays. The order is that of
// torchvision's usual transforms: resize, center crop, scale to 0..1, subtract the mean, divide by the standard deviation.
// The result is float32, samples x channels x height x width.
//
// Not a doc comment: clap would put it in the place of the description of each command that has these options.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub struct ImageOptions {
    /// Resize images: `224` makes the shorter side 224 pixels and crops the center to 224x224,
    /// `192x256` resizes to height 192 and width 256, whatever the proportions
    #[arg(long, help_heading = HEADING, value_name = "SIZE")]
    pub resize: Option<Resize>,

    /// Crop the center after resizing: `224` or `HEIGHTxWIDTH`. ImageNet models are mostly trained
    /// for `--resize 256 --crop 224`
    #[arg(long, help_heading = HEADING, value_name = "SIZE")]
    pub crop: Option<Size>,

    /// Mean to subtract, for pixels scaled to 0..1: one value, or three for red, green, blue
    /// (ImageNet: 0.485,0.456,0.406) [default: 0]
    #[arg(long, help_heading = HEADING, value_name = "MEAN", value_delimiter = ',', allow_negative_numbers = true)]
    pub mean: Vec<f32>,

    /// Standard deviation to divide by, for pixels scaled to 0..1: one value, or three for red, green, blue
    /// (ImageNet: 0.229,0.224,0.225) [default: 1]
    #[arg(long, help_heading = HEADING, value_name = "STD", value_delimiter = ',', allow_negative_numbers = true)]
    pub std: Vec<f32>,

    /// Read images as one channel of brightness instead of red, green, blue
    #[arg(long, help_heading = HEADING)]
    pub grayscale: bool,
}

impl ImageOptions {
    /// Channels of the result: 1 or 3.
    pub(super) fn channels(&self) -> usize {
        if self.grayscale { 1 } else { 3 }
    }

    /// `--mean` and `--std` for each channel.
    ///
    /// # Errors
    /// If there are neither one nor as many values as channels, or values that cannot be meant.
    pub(super) fn normalization(&self) -> Result<Vec<Normalization>> {
        let mean = self.per_channel("--mean", &self.mean, 0.0)?;
        let std = self.per_channel("--std", &self.std, 1.0)?;
        for &mean in &mean {
            ensure!(
                mean.is_finite() && mean.abs() <= 1.0,
                "--mean {mean}: the mean is subtracted from pixels already scaled to 0..1, so it lies there too; \
                 for a mean of 0..255, divide by 255"
            );
        }
        for &std in &std {
            ensure!(std.is_finite() && std > 0.0, "--std {std}: a standard deviation is above 0");
        }
        Ok(mean.into_iter().zip(std).map(|(mean, std)| Normalization { mean, std }).collect())
    }

    fn per_channel(&self, option: &str, values: &[f32], default: f32) -> Result<Vec<f32>> {
        let channels = self.channels();
        match values {
            [] => Ok(vec![default; channels]),
            [value] => Ok(vec![*value; channels]),
            _ if values.len() == channels => Ok(values.to_vec()),
            _ if self.grayscale => {
                bail!("{option} has {} values, but --grayscale images have one channel", values.len())
            }
            _ => bail!("{option} has {} values; give one, or three for red, green and blue", values.len()),
        }
    }
}

/// `(pixel - mean) / std`, for pixels in 0..1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Normalization {
    pub mean: f32,
    pub std: f32,
}

/// Height and width in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

/// A side longer than this is a mistake in typing, not an input of a model.
const MAX_SIDE: u32 = 1 << 14;

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let side = |text: &str| match text.trim().parse::<u32>() {
            Ok(side @ 1..=MAX_SIDE) => Ok(side),
            _ => Err(format!("expected SIDE or HEIGHTxWIDTH in pixels (1 to {MAX_SIDE}), as in 224 or 192x256")),
        };
        match text.split_once(['x', 'X']) {
            Some((height, width)) => Ok(Self { height: side(height)?, width: side(width)? }),
            None => side(text).map(|side| Self { height: side, width: side }),
        }
    }
}

/// The value of `--resize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// The shorter side gets this length, the longer one in proportion.
    ShorterSide(u32),
    /// Both sides are given.
    Exact(Size),
}

impl Resize {
    /// The size of an image after resizing. The longer side is rounded down, as torchvision does.
    pub(super) fn apply(self, from: Size) -> Size {
        let in_proportion =
            |side: u32, long: u32, short: u32| (u64::from(side) * u64::from(long) / u64::from(short.max(1))) as u32;
        match self {
            Self::Exact(size) => size,
            Self::ShorterSide(side) if from.height <= from.width => {
                Size { height: side, width: in_proportion(side, from.width, from.height) }
            }
            Self::ShorterSide(side) => Size { height: in_proportion(side, from.height, from.width), width: side },
        }
    }
}

impl FromStr for Resize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: Size = text.parse()?;
        Ok(if text.contains(['x', 'X']) { Self::Exact(size) } else { Self::ShorterSide(size.height) })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// The description of the command.
    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        images: ImageOptions,
        #[arg(long)]
        other: bool,
    }

    fn parse(arguments: &[&str]) -> ImageOptions {
        Command::try_parse_from([&["command"], arguments].concat()).unwrap().images
    }

    fn normalization_error(arguments: &[&str]) -> String {
        parse(arguments).normalization().unwrap_err().to_string()
    }

    #[test]
    fn options_are_parsed() {
        let options = parse(&["--resize", "256", "--crop", "192x224", "--mean", "0.485,0.456,0.406", "--std", "0.25"]);
        assert_eq!(options.resize, Some(Resize::ShorterSide(256)));
        assert_eq!(options.crop, Some(Size { height: 192, width: 224 }));
        let normalization = options.normalization().unwrap();
        assert_eq!(normalization[1], Normalization { mean: 0.456, std: 0.25 });
        assert_eq!(normalization.len(), 3);
        let gray = parse(&["--grayscale", "--mean", "-0.5", "--resize", "28x32"]);
        assert_eq!(gray.resize, Some(Resize::Exact(Size { height: 28, width: 32 })));
        assert_eq!(gray.normalization().unwrap(), [Normalization { mean: -0.5, std: 1.0 }]);
    }

    #[test]
    fn these_options_have_their_own_part_of_the_help() {
        use clap::CommandFactory;
        let mut command = Command::command();
        let help = command.render_long_help().to_string();
        assert!(help.starts_with("The description of the command"), "{help}");
        let (before, images) = help.split_once("Images:").unwrap();
        assert!(before.contains("--other") && images.contains("--resize"), "{help}");
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        for text in ["0", "-3", "224x", "x", "abc", "224x0", "99999999", "1x2x3"] {
            let message = text.parse::<Resize>().unwrap_err();
            assert!(message.contains("HEIGHTxWIDTH"), "{text}: {message}");
        }
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused() {
        assert!(normalization_error(&["--mean", "123.675"]).contains("divide by 255"));
        assert!(normalization_error(&["--std", "0"]).contains("above 0"));
        assert!(normalization_error(&["--std", "nan"]).contains("above 0"));
        assert!(normalization_error(&["--mean", "0.1,0.2"]).contains("2 values"));
        assert!(normalization_error(&["--grayscale", "--mean", "0.1,0.2,0.3"]).contains("one channel"));
    }

    #[test]
    fn the_shorter_side_decides() {
        let size = |height, width| Size { height, width };
        assert_eq!(Resize::ShorterSide(256).apply(size(375, 500)), size(256, 341));
        assert_eq!(Resize::ShorterSide(256).apply(size(500, 375)), size(341, 256));
        assert_eq!(Resize::ShorterSide(224).apply(size(100, 100)), size(224, 224));
        assert_eq!(Resize::Exact(size(10, 20)).apply(size(500, 375)), size(10, 20));
    }
}
