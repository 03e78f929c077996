//! The model as a graph, its layers coloured by what they lose: SVG, laid out by depth.

use std::fmt::Write;

use anyhow::Result;
use jitquant::analysis::OutlineNode;

use super::page::escape;
use super::picture::color;
use crate::layers::LayerRow;

const WIDTH: f64 = 210.0;
const HEIGHT: f64 = 24.0;
const GAP: f64 = 24.0;
/// From one row to the next.
const PITCH: f64 = 50.0;
const MARGIN: f64 = 60.0;
/// Characters of a label.
const LABEL: usize = 32;

/// Where a node's middle is.
#[derive(Clone, Copy)]
struct Place {
    x: f64,
    y: f64,
    row: usize,
}

/// Each node one row below the last of those that lead to it, nodes of a row beside each other in the order of what leads
/// to them; and the picture's sizes.
fn layout(nodes: &[OutlineNode]) -> (Vec<Place>, f64, f64) {
    let mut places: Vec<Place> = Vec::with_capacity(nodes.len());
    let mut rows: Vec<Vec<usize>> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let row = node.after.iter().map(|&before| places[before].row + 1).max().unwrap_or(0);
        rows.resize_with(rows.len().max(row + 1), Vec::new);
        rows[row].push(index);
        places.push(Place { x: 0.0, y: MARGIN / 2.0 + row as f64 * PITCH + HEIGHT / 2.0, row });
    }
    let widest = rows.iter().map(Vec::len).max().unwrap_or(1) as f64;
    let width = widest * (WIDTH + GAP) + 2.0 * MARGIN;
    for row in &mut rows {
        let mean = |node: usize| {
            let before = &nodes[node].after;
            before.iter().map(|&before| places[before].x).sum::<f64>() / before.len().max(1) as f64
        };
        let mut order: Vec<(f64, usize)> = row.iter().map(|&node| (mean(node), node)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let first = width / 2.0 - (order.len() as f64 - 1.0) / 2.0 * (WIDTH + GAP);
        for (position, (_, node)) in order.into_iter().enumerate() {
            places[node].x = first + position as f64 * (WIDTH + GAP);
        }
    }
    (places, width, rows.len() as f64 * PITCH + MARGIN)
}

/// The end of a label, which tells more than its beginning.
fn shortened(label: &str) -> String {
    let count = label.chars().count();
    match count > LABEL {
        true => std::iter::once('…').chain(label.chars().skip(count - LABEL + 1)).collect(),
        false => label.to_owned(),
    }
}

/// The picture. Layers carry their position in the table as `data-layer`.
pub fn graph(nodes: &[OutlineNode], layers: &[LayerRow]) -> Result<String> {
    let (places, width, height) = layout(nodes);
    let mut svg = String::new();
    write!(svg, "<svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" font-size=\"12\">")?;
    for (node, to) in nodes.iter().zip(&places) {
        for from in node.after.iter().map(|&before| places[before]) {
            let (start, end) = (from.y + HEIGHT / 2.0, to.y - HEIGHT / 2.0);
            // A way past other rows goes beside them.
            let aside = if to.row > from.row + 1 { from.x.max(to.x) + WIDTH / 2.0 + GAP / 2.0 } else { f64::NAN };
            let (first, second) = if aside.is_nan() { (from.x, to.x) } else { (aside, aside) };
            write!(
                svg,
                "<path d=\"M{} {start}C{first} {} {second} {} {} {end}\" fill=\"none\" stroke=\"#9ca3af\"/>",
                from.x,
                start + PITCH / 2.0,
                end - PITCH / 2.0,
                to.x
            )?;
        }
    }
    for (node, place) in nodes.iter().zip(&places) {
        let layer = node.layer.and_then(|index| layers.get(index));
        let (fill, text, attribute) = match layer {
            Some(layer) => {
                let c = color(layer.sqnr_db);
                let what = if layer.quantized { &layer.int8_operator } else { "float" };
                let sqnr =
                    if layer.sqnr_db.is_finite() { format!("{:.1} dB", layer.sqnr_db) } else { "exact".to_owned() };
                let attribute = format!(" class=\"node\" tabindex=\"0\" data-layer=\"{}\"", layer.position);
                (format!("rgb({},{},{})", c.0, c.1, c.2), format!("{}: {what}, {sqnr}", node.label), attribute)
            }
            None => ("#e5e7eb".to_owned(), node.label.clone(), String::new()),
        };
        write!(
            svg,
            "<g{attribute}><title>{}</title><rect x=\"{}\" y=\"{}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"4\" \
             fill=\"{fill}\"/><text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text></g>",
            escape(&text),
            place.x - WIDTH / 2.0,
            place.y - HEIGHT / 2.0,
            place.x,
            place.y + 4.0,
            escape(&shortened(&node.label))
        )?;
    }
    svg.push_str("</svg>");
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_stand_below_what_leads_to_them_and_beside_each_other() {
        let node =
            |label: &str, after: &[usize]| OutlineNode { label: label.into(), layer: None, after: after.to_vec() };
        let nodes = [node("input", &[]), node("a", &[0]), node("b", &[0]), node("a2", &[1]), node("add", &[3, 2])];
        let (places, width, height) = layout(&nodes);
        let rows: Vec<usize> = places.iter().map(|place| place.row).collect();
        assert_eq!(rows, [0, 1, 1, 2, 3]);
        assert!(places[1].x + WIDTH < places[2].x && places[0].x == width / 2.0);
        assert!(places.iter().all(|place| place.y + HEIGHT < height && place.x > WIDTH / 2.0));
        assert_eq!(shortened(&"x".repeat(40)).chars().count(), LABEL);
    }
}
