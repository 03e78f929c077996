//! The report's page in a real browser: headless Chromium opens it, sorts the table, opens a layer, clicks a layer of the
//! graph, and takes a picture. Where there is no Chromium the test says so on stderr and does nothing more;
//! `JITQUANT_CHROMIUM` names another browser of its kind, and makes it an error if that cannot be run.

#![cfg(feature = "cli")]

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use jitquant::Quantizer;
use support::{classifier, images, write_npy};

fn chromium() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("JITQUANT_CHROMIUM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name))).find(|file| file.is_file())
}

/// What `browser` prints for a page, with these options before it.
fn open(browser: &Path, folder: &Path, options: &[&str], page: &Path) -> String {
    let profile = format!("--user-data-dir={}", folder.join("profile").display());
    // No sandbox: in a container, which has none to give, Chromium does not start otherwise. The page is ours.
    let fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", &profile];
    let address = format!("file://{}", page.display());
    let output = Command::new(browser).args(fixed).args(options).arg(address).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", browser.display());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Clicks as a user does and writes what is seen into the title, piece by piece.
const CLICKS: &str = r#"<script>
const seen=[],names=()=>[...document.querySelectorAll('tr.layer')].map(row=>row.dataset.position).join(',');
window.addEventListener('error',e=>seen.push('error '+e.message));
seen.push(names());
const sqnr=document.querySelectorAll('#layers th button')[3];
const values=()=>[...document.querySelectorAll('tr.layer')].map(row=>parseFloat(row.cells[3].dataset.value));
const rising=v=>v.every((x,i)=>i===0||v[i-1]<=x);
sqnr.click();seen.push('up '+rising(values()));
sqnr.click();seen.push('down '+rising(values().reverse()));
document.querySelectorAll('#layers th button')[1].click();seen.push(names());
const row=document.querySelector('tr.layer'),detail=document.getElementById('detail-'+row.dataset.position);
seen.push('closed '+(detail.offsetHeight===0));
row.click();
seen.push('open '+(detail.offsetHeight>100&&row.nextElementSibling===detail));
const node=document.querySelector('.node[data-layer="4"]');
node.dispatchEvent(new MouseEvent('click',{bubbles:true}));
seen.push('graph '+(document.getElementById('detail-4').offsetHeight>100));
seen.push('requests '+performance.getEntriesByType('resource').length);
document.title=seen.join('; ');
</script>"#;

#[test]
fn a_browser_sorts_the_table_and_opens_layers() {
    let Some(browser) = chromium() else {
        // Not println!, which the test runner keeps for itself.
        let text =
            "SKIPPED: the report's page was not tried in a browser: no chromium on PATH (apt-get install chromium)\n";
        std::io::stderr().write_all(text.as_bytes()).unwrap();
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut prepared = Quantizer::static_ptq().prepare(&classifier()).unwrap();
    prepared.calibrate(&[images(24, 1)]).unwrap();
    classifier().save(path("model.pt")).unwrap();
    prepared.convert().unwrap().module.save(path("int8.pt")).unwrap();
    write_npy(&path("x.npy"), &images(16, 2));
    let output = Command::new(env!("CARGO_BIN_EXE_jitquant"))
        .args(["report", "model.pt", "int8.pt", "--data", "x.npy", "-o", "page.html"])
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(path("page.html")).unwrap();
    std::fs::write(path("clicked.html"), page.replace("</body>", &format!("{CLICKS}</body>"))).unwrap();

    let seen = open(&browser, folder.path(), &["--dump-dom"], &path("clicked.html"));
    let title = seen.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>")).map(|(title, _)| title);
    let expected = "1,2,3,4; up true; down true; 1,2,3,4; closed true; open true; graph true; requests 0";
    assert_eq!(title, Some(expected));

    let picture = path("page.png");
    let shot = format!("--screenshot={}", picture.display());
    open(&browser, folder.path(), &[&shot, "--window-size=1100,2200", "--hide-scrollbars"], &path("page.html"));
    let picture = image::open(&picture).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (1100, 2200));
    // A page with pictures has many colours; an empty one, or an error's, a few.
    let colors: std::collections::HashSet<[u8; 3]> = picture.pixels().map(|pixel| pixel.0).collect();
    assert!(colors.len() > 100, "{} colours", colors.len());
}
