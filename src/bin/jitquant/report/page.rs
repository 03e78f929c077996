//! The page.

use std::fmt::Write;

use anyhow::Result;

use super::{Findings, graph, picture};
use crate::layers::LayerRow;

const STYLE: &str = "\
body{font:15px/1.45 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}code,pre{background:#f3f4f6;padding:.15em .35em;border-radius:3px}\
pre{padding:.7em;white-space:pre-wrap;overflow-wrap:anywhere}table{border-collapse:collapse;width:100%;font-size:13px}\
th,td{padding:.35em .6em;text-align:right;border-bottom:1px solid #e5e7eb}\
th:first-child,td:first-child,td.text{text-align:left;overflow-wrap:anywhere}\
th button{all:unset;cursor:pointer;font-weight:600}th button:focus-visible{outline:2px solid #4682b4}\
tr.layer{cursor:pointer}tr.layer:hover{background:#f9fafb}\
tr.detail td{text-align:left;background:#fafafa}.dot{display:inline-block;width:.8em;height:.8em;border-radius:50%}\
.pictures{display:flex;flex-wrap:wrap;gap:1em}figure svg,#overview svg{max-width:100%;height:auto}\
.graph{overflow:auto;max-height:640px;border:1px solid #e5e7eb}.node{cursor:pointer}.node:hover rect{stroke:#222}";

/// Sorting moves a row and its detail together; what is no number sorts behind all numbers.
const SCRIPT: &str = "\
const body=document.querySelector('#layers tbody');let last=null,down=false;\
const number=c=>{const v=parseFloat(c.dataset.value);return Number.isNaN(v)?Infinity:v};\
document.querySelectorAll('#layers th button').forEach((button,i)=>button.onclick=()=>{\
down=last===i&&!down;last=i;const rows=[...body.querySelectorAll('tr.layer')];\
rows.sort((a,b)=>{const x=a.cells[i],y=b.cells[i];\
const d='value' in x.dataset?number(x)-number(y)||0:x.textContent.localeCompare(y.textContent);return down?-d:d});\
for(const row of rows){const detail=document.getElementById('detail-'+row.dataset.position);body.append(row,detail)}});\
const show=position=>{const row=body.querySelector('tr.layer[data-position=\"'+position+'\"]');\
if(row.getAttribute('aria-expanded')==='false')toggle(row);row.scrollIntoView()};\
document.querySelectorAll('.node').forEach(node=>{node.onclick=()=>show(node.dataset.layer);\
node.onkeydown=e=>{if(e.key==='Enter')show(node.dataset.layer)}});\
const toggle=row=>{const d=document.getElementById('detail-'+row.dataset.position);d.hidden=!d.hidden;\
row.setAttribute('aria-expanded',String(!d.hidden))};\
body.querySelectorAll('tr.layer').forEach(row=>{row.onclick=()=>toggle(row);\
row.onkeydown=e=>{if(e.key==='Enter'){toggle(row)}}});";

const COLUMNS: [&str; 12] = [
    "layer",
    "#",
    "INT8 operator",
    "SQNR dB",
    "cosine",
    "clipped %",
    "zero point",
    "weight dB",
    "float kB",
    "INT8 kB",
    "float ms",
    "INT8 ms",
];

/// The page as HTML.
pub fn page(findings: &Findings) -> Result<String> {
    let layers = findings.figures.layers.as_ref().map_or(&[][..], |layers| &layers.layers);
    let mut html = String::new();
    write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}: float and INT8</title>\
         <style>{STYLE}</style></head><body><h1>{name}: float and INT8</h1>",
        name = escape(&findings.int8_model.display().to_string())
    )?;
    write!(html, "<pre id=\"summary\">{}</pre>", escape(&findings.figures.text()))?;
    write!(html, "<h2>Where accuracy goes</h2><div id=\"overview\">{}</div>", picture::overview(layers)?)?;
    if let Some(layers) = &findings.figures.layers {
        let picture = graph::graph(&layers.graph, &layers.layers)?;
        write!(
            html,
            "<h2>The model</h2><p>Layers coloured by the SQNR of their outputs: red is 10 dB and less, yellow 25, green 40 \
             and more; grey was not compared. Click a layer to open it.</p><div class=\"graph\">{picture}</div>"
        )?;
    }
    html.push_str(
        "<h2>Layers</h2><p>SQNR is that of the layer's output, the errors of the layers before it included. Times \
         are medians for one batch, each layer run by itself on its own inputs; sizes are those of the weights' elements. \
         Click a column to sort, a layer to open it.</p><table id=\"layers\"><thead><tr>",
    );
    for title in COLUMNS {
        write!(html, "<th><button type=\"button\">{title}</button></th>")?;
    }
    html.push_str("</tr></thead><tbody>");
    for layer in layers {
        row(&mut html, layer)?;
    }
    html.push_str("</tbody></table>");
    for why in findings.figures.layers.iter().flat_map(|layers| &layers.not_compared) {
        write!(html, "<p>Not compared: {}</p>", escape(why))?;
    }
    html.push_str("<h2>Left in float</h2>");
    match findings.left_in_float.is_empty() {
        true => html.push_str("<p>No layer.</p>"),
        false => {
            html.push_str("<ul>");
            for layer in &findings.left_in_float {
                let reason = layer.reason.as_deref().unwrap_or("neither the file nor the model tells why");
                write!(html, "<li><code>{}</code> ({}): {}</li>", escape(&layer.path), layer.operator, escape(reason))?;
            }
            html.push_str("</ul>");
        }
    }
    html.push_str("<h2>Made by</h2><p>The INT8 model:</p>");
    match &findings.made_by {
        Some(made) => write!(
            html,
            "<pre id=\"made-by\">{}</pre><p>(jitquant {})</p>",
            escape(&made.command_line()),
            escape(&made.version)
        )?,
        None => html.push_str("<p id=\"made-by\">not recorded in its file</p>"),
    }
    write!(html, "<p>This page:</p><pre>{}</pre>", escape(&findings.command))?;
    writeln!(html, "<script>{SCRIPT}</script></body></html>")?;
    Ok(html)
}

fn row(html: &mut String, layer: &LayerRow) -> Result<()> {
    let position = layer.position;
    let color = picture::color(layer.sqnr_db);
    write!(
        html,
        "<tr class=\"layer\" data-position=\"{position}\" tabindex=\"0\" aria-expanded=\"false\"><td>\
         <span class=\"dot\" style=\"background:rgb({},{},{})\"></span> {}</td><td data-value=\"{position}\">{position}</td>\
         <td class=\"text\">{}</td>",
        color.0,
        color.1,
        color.2,
        escape(&layer.name()),
        escape(if layer.quantized { &layer.int8_operator } else { "float" })
    )?;
    let mut number = |value: Option<f64>, digits: usize| match value {
        Some(value) => write!(html, "<td data-value=\"{value}\">{value:.digits$}</td>"),
        None => write!(html, "<td data-value=\"\"></td>"),
    };
    number(Some(layer.sqnr_db).filter(|db| db.is_finite()), 1)?;
    number(Some(layer.cosine), 5)?;
    number(layer.range.map(|_| layer.clipped_share * 100.0), 2)?;
    number(layer.range.map(|range| range.zero_point as f64), 0)?;
    number(layer.weight.as_ref().map(|weight| weight.sqnr_db).filter(|db| db.is_finite()), 1)?;
    number(layer.weight_bytes.map(|bytes| bytes.0 as f64 / 1e3), 1)?;
    number(layer.weight_bytes.map(|bytes| bytes.1 as f64 / 1e3), 1)?;
    number(layer.time.map(|time| time.float * 1e3), 3)?;
    number(layer.time.map(|time| time.int8 * 1e3), 3)?;
    write!(html, "</tr><tr class=\"detail\" id=\"detail-{position}\" hidden><td colspan=\"{}\"><p>", COLUMNS.len())?;
    write!(html, "Float values {:.4} … {:.4}", layer.min, layer.max)?;
    if let Some(range) = layer.range {
        let (min, max, scale, zero) = (range.min(), range.max(), range.scale, range.zero_point);
        write!(html, "; INT8 range {min:.4} … {max:.4} (scale {scale:.6}, zero point {zero})")?;
    }
    if !layer.source.is_empty() {
        write!(html, "; {}", escape(&layer.source))?;
    }
    html.push_str(".</p><div class=\"pictures\">");
    if let Some(histogram) = &layer.histogram {
        let picture = picture::histogram(histogram, layer.range.as_ref())?;
        write!(
            html,
            "<figure>{picture}<figcaption>Output: float filled, INT8 as a line, the range's ends upright; \
                      counts on a logarithmic scale</figcaption></figure>"
        )?;
    }
    if let Some(weight) = &layer.weight {
        let picture = picture::channels(weight)?;
        write!(
            html,
            "<figure>{picture}<figcaption>Weight by channel, coloured by its rounding error</figcaption></figure>"
        )?;
    }
    html.push_str("</div></td></tr>");
    Ok(())
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
