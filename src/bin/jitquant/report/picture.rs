//! The page's pictures, as SVG.

use anyhow::{Result, anyhow};
use jitquant::analysis::{Histogram, OutputRange, WeightFigures};
use plotters::prelude::*;

use crate::layers::LayerRow;

const FLOAT: RGBColor = RGBColor(70, 130, 180);
const INT8: RGBColor = RGBColor(230, 126, 34);

/// The colour of a layer: red at 10 dB and below, yellow at 25, green at 40 and above.
pub fn color(sqnr_db: f64) -> RGBColor {
    let share = ((sqnr_db - 10.0) / 30.0).clamp(0.0, 1.0);
    let mix = |from: f64, to: f64, share: f64| (from + (to - from) * share).round() as u8;
    match share < 0.5 {
        true => RGBColor(mix(200.0, 235.0, share * 2.0), mix(50.0, 190.0, share * 2.0), 60),
        false => RGBColor(mix(235.0, 60.0, share * 2.0 - 1.0), mix(190.0, 160.0, share * 2.0 - 1.0), 70),
    }
}

fn failed(e: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing: {e}")
}

/// SQNR of all layers in the order of execution, a bar each.
pub fn overview(layers: &[LayerRow]) -> Result<String> {
    let top = layers.iter().map(|layer| layer.sqnr_db).filter(|db| db.is_finite()).fold(10.0, f64::max) * 1.1;
    let bars = layers.iter().enumerate().map(|(index, layer)| {
        let height = if layer.sqnr_db.is_finite() { layer.sqnr_db.max(0.0) } else { top };
        (index as f64, height, color(layer.sqnr_db))
    });
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (960, 240)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(32)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..layers.len().max(1) as f64, 0.0..top)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .x_desc("layers in the order of execution")
            .y_desc("SQNR, dB")
            .draw()
            .map_err(failed)?;
        chart
            .draw_series(
                bars.map(|(x, height, color)| Rectangle::new([(x + 0.1, 0.0), (x + 0.9, height)], color.filled())),
            )
            .map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// How a layer's values are spread in float (filled) and in INT8 (line), logarithmic, with the INT8 range's ends.
pub fn histogram(histogram: &Histogram, range: Option<&OutputRange>) -> Result<String> {
    let height = |count: u64| ((count + 1) as f64).log10();
    let top = histogram.float.iter().chain(&histogram.int8).map(|&count| height(count)).fold(1.0, f64::max) * 1.05;
    let width = (histogram.max - histogram.min) / histogram.float.len() as f64;
    let steps = |counts: &[u64]| {
        let step = |(index, &count): (usize, &u64)| {
            let left = histogram.min + index as f64 * width;
            [(left, height(count)), (left + width, height(count))]
        };
        counts.iter().enumerate().flat_map(step).collect::<Vec<_>>()
    };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (460, 220)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(32)
            .y_label_area_size(48)
            .build_cartesian_2d(histogram.min..histogram.max, 0.0..top)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(6)
            .y_labels(5)
            .y_label_formatter(&|y| format!("{:.0}", 10f64.powf(*y) - 1.0))
            .x_desc("value")
            .y_desc("count")
            .draw()
            .map_err(failed)?;
        chart.draw_series(AreaSeries::new(steps(&histogram.float), 0.0, FLOAT.mix(0.45))).map_err(failed)?;
        chart.draw_series(LineSeries::new(steps(&histogram.int8), INT8.stroke_width(2))).map_err(failed)?;
        for end in range.iter().flat_map(|range| [range.min(), range.max()]) {
            chart.draw_series(LineSeries::new([(end, 0.0), (end, top)], BLACK.mix(0.6))).map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// The largest absolute weight of each output channel.
pub fn channels(weight: &WeightFigures) -> Result<String> {
    let top = weight.channels.iter().map(|channel| f64::from(channel.largest)).fold(1e-9, f64::max) * 1.1;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (460, 220)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(32)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..weight.channels.len().max(1) as f64, 0.0..top)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_label_formatter(&|x| format!("{x:.0}"))
            .x_desc("output channel")
            .y_desc("largest |weight|")
            .draw()
            .map_err(failed)?;
        let bars = weight.channels.iter().enumerate().map(|(index, channel)| {
            let x = index as f64;
            Rectangle::new([(x, 0.0), (x + 1.0, f64::from(channel.largest))], color(channel.sqnr_db).filled())
        });
        chart.draw_series(bars).map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}
