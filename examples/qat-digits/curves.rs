//! Learning curves as a picture (SVG).

use plotters::prelude::*;

use crate::Fallible;

/// How a training run went.
pub struct Curve {
    /// Of weights.
    pub bits: u32,
    /// Accuracy of post-training quantization in percent, each weight rounded to the nearest step.
    pub nearest: f64,
    /// The same, weights rounded so that a channel's errors cancel.
    pub post_training: f64,
    /// Accuracy of the INT8 model on held-out digits in percent: before training and after each epoch.
    pub accuracy: Vec<f64>,
    /// The loss of each epoch.
    pub loss: Vec<f64>,
}

const COLORS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(230, 126, 34), RGBColor(150, 60, 160), RGBColor(80, 140, 60)];
const FLOAT: RGBColor = RGBColor(110, 110, 110);

/// Accuracy (left) and loss (right) by epoch, a line for each run.
pub fn draw(curves: &[Curve], float: f64) -> Fallible<String> {
    let epochs = curves.iter().map(|curve| curve.loss.len()).max().unwrap_or(1);
    let lowest = curves.iter().flat_map(|curve| curve.accuracy.iter().chain([&curve.post_training])).copied();
    let lowest = (lowest.fold(float, f64::min) - 3.0).max(0.0);
    let highest_loss = curves.iter().flat_map(|curve| &curve.loss).copied().fold(0.0, f64::max) * 1.1;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (960, 340)).into_drawing_area();
        area.fill(&WHITE)?;
        let (left, right) = area.split_horizontally(560);

        let mut chart = ChartBuilder::on(&left)
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..epochs as f64, lowest..100.5)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .x_desc("epochs of training")
            .y_desc("accuracy on held-out digits, %")
            .draw()?;
        let whole = [(0.0, float), (epochs as f64, float)];
        chart
            .draw_series(DashedLineSeries::new(whole, 6, 4, FLOAT.stroke_width(2)))?
            .label(format!("float: {float:.1} %"))
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], FLOAT.stroke_width(2)));
        for (curve, color) in curves.iter().zip(COLORS.into_iter().cycle()) {
            let points = curve.accuracy.iter().enumerate().map(|(epoch, value)| (epoch as f64, *value));
            let last = curve.accuracy.last().copied().unwrap_or_default();
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(3))?
                .label(format!("{}-bit weights, trained: {last:.1} %", curve.bits))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
            chart
                .draw_series([Cross::new((0.0, curve.post_training), 6, color.stroke_width(2))])?
                .label(format!("{}-bit weights, post-training: {:.1} %", curve.bits, curve.post_training))
                .legend(move |(x, y)| Cross::new((x + 8, y), 5, color.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.85))
            .border_style(FLOAT)
            .draw()?;

        let mut chart = ChartBuilder::on(&right)
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..epochs as f64, 0.0..highest_loss)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .x_desc("epochs of training")
            .y_desc("loss of training")
            .draw()?;
        for (curve, color) in curves.iter().zip(COLORS.into_iter().cycle()) {
            let points = curve.loss.iter().enumerate().map(|(epoch, value)| (epoch as f64 + 1.0, *value));
            chart.draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(3))?;
        }
        area.present()?;
    }
    Ok(svg)
}
