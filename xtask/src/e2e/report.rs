//! The report in a real browser: Debian's Chromium draws the page, light and dark, and the picture is looked at.

use super::scratch::Scratch;
use crate::{cmd, tools};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
/// Of a desktop's window and of a phone's; as long as the page is, or longer.
const WIDTHS: [u32; 2] = [1200, 480];
const HEIGHT: u32 = 9000;

type Colour = [u8; 3];

/// As `page.css` and the charts have them.
const LIGHT: Look = Look { name: "light", paper: [0xFF, 0xFF, 0xFF], ink: [0x1C, 0x24, 0x30], scheme: 1 };
const DARK: Look = Look { name: "dark", paper: [0x14, 0x18, 0x1E], ink: [0xE3, 0xE8, 0xEF], scheme: 0 };
/// The first four lines, bars or pieces of charts.
const CHARTS: [Colour; 4] = [[0x00, 0x72, 0xB2], [0xD5, 0x5E, 0x00], [0x00, 0x9E, 0x73], [0xCC, 0x79, 0xA7]];
/// Lines of charts and their bars are not drawn with fewer pixels of their very colour.
const CHART_PIXELS_MIN: usize = 500;
/// Nor is the text of the page.
const INK_PIXELS_MIN: usize = 5000;

struct Look {
    name: &'static str,
    paper: Colour,
    ink: Colour,
    /// Blink's number of it.
    scheme: u32,
}

pub fn run() -> Result<()> {
    let scratch = Scratch::new("report")?;
    let page = scratch.path().join("page.html");
    make(&page)?;
    for look in [LIGHT, DARK] {
        for width in WIDTHS {
            let shot = scratch.path().join(format!("{}-{width}.png", look.name));
            draw(&page, &shot, width, &look, scratch.path())?;
            let picture = Picture::read(&shot)?;
            examine(&picture, width, &look).with_context(|| shot.display().to_string())?;
        }
    }
    println!("the report is drawn, light and dark, on {} widths, with its text and its charts", WIDTHS.len());
    scratch.passed();
    Ok(())
}

/// A page of every kind of figures, with a comparison.
fn make(page: &Path) -> Result<()> {
    let folder = cmd::root().join("testdata/report");
    let files = ["run", "series", "amplification", "curves", "profile", "record"];
    let path = |name: &str| folder.join(format!("{name}.json"));
    let mut report = Command::new(tools::daemon());
    report.arg("report").args(files.map(path)).arg("--before").arg(path("run-before")).arg("--out").arg(page);
    cmd::run(&mut report, LIMIT)
}

fn draw(page: &Path, shot: &Path, width: u32, look: &Look, scratch: &Path) -> Result<()> {
    let profile = scratch.join("browser");
    let mut browser = Command::new("chromium");
    // It is fetched from nowhere and asks nobody.
    browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
    browser.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    browser.arg("--hide-scrollbars").arg(format!("--user-data-dir={}", profile.display()));
    browser.arg(format!("--window-size={width},{HEIGHT}"));
    browser.arg(format!("--blink-settings=preferredColorScheme={}", look.scheme));
    browser.arg(format!("--screenshot={}", shot.display())).arg(format!("file://{}", page.display()));
    cmd::run_quietly(&mut browser, &scratch.join("browser.log"), LIMIT)
}

fn examine(picture: &Picture, width: u32, look: &Look) -> Result<()> {
    ensure!(
        (picture.width, picture.height) == (width, HEIGHT),
        "it is {} x {}",
        picture.width,
        picture.height
    );
    let corners = [(0, 0), (width - 1, 0), (0, HEIGHT - 1), (width - 1, HEIGHT - 1)];
    for (x, y) in corners {
        let colour = picture.at(x, y);
        ensure!(colour == look.paper, "the corner at {x}, {y} is {colour:02x?} and not paper");
    }
    let ink = picture.count(look.ink);
    ensure!(ink >= INK_PIXELS_MIN, "only {ink} pixels of ink");
    for colour in CHARTS {
        let pixels = picture.count(colour);
        ensure!(pixels >= CHART_PIXELS_MIN, "only {pixels} pixels of the charts' {colour:02x?}");
    }
    Ok(())
}

struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<Colour>,
}

impl Picture {
    fn read(path: &PathBuf) -> Result<Picture> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let mut decoder = png::Decoder::new(BufReader::new(file));
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info()?;
        let mut bytes = vec![0; reader.output_buffer_size().context("a picture that fits into memory")?];
        let info = reader.next_frame(&mut bytes)?;
        let samples = info.color_type.samples();
        ensure!(samples >= 3, "the picture has no colours");
        let pixels = bytes[..info.buffer_size()].chunks_exact(samples).map(|p| [p[0], p[1], p[2]]).collect();
        Ok(Picture { width: info.width, height: info.height, pixels })
    }

    fn at(&self, x: u32, y: u32) -> Colour {
        self.pixels[(y * self.width + x) as usize]
    }

    fn count(&self, colour: Colour) -> usize {
        self.pixels.iter().filter(|pixel| **pixel == colour).count()
    }
}
