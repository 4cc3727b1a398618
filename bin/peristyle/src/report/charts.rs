//! Charts as SVG, by `plotters`. Ink, grid and background have colours that the page's style replaces for light and dark.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const SIZE: (u32, u32) = (900, 420);
const INK: RGBColor = RGBColor(0x10, 0x20, 0x30);
const GRID: RGBColor = RGBColor(0xC0, 0xC8, 0xD0);
const PAPER: RGBColor = RGBColor(0xFE, 0xFE, 0xFE);
/// Told apart by people who do not see all colours: Okabe and Ito, 2008.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
    RGBColor(0x8A, 0x8A, 0x8A),
];

/// Above so many points of a line only the line is drawn.
const DOTS_MAX: usize = 40;

/// Points that are joined; dashed where they are not measured.
pub struct Line {
    pub name: String,
    /// Which of the colours: what belongs together has the same.
    pub colour: usize,
    pub points: Vec<(f64, f64)>,
    pub is_dashed: bool,
}

type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Both axes logarithmic. `None` when there is nothing to show.
pub fn log_log(lines: &[Line], x: &str, y: &str) -> Option<String> {
    let points = || lines.iter().flat_map(|line| &line.points).filter(|(x, y)| *x > 0.0 && *y > 0.0);
    let (xs, ys) = (range(points().map(|p| p.0))?, range(points().map(|p| p.1))?);
    svg(|root| {
        let mut chart = ChartBuilder::on(root);
        chart.margin(12).x_label_area_size(44).y_label_area_size(64);
        let mut chart = chart.build_cartesian_2d((xs.0..xs.1).log_scale(), (ys.0..ys.1).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(x)
            .y_desc(y)
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 14).into_font().color(&INK))
            .x_label_formatter(&|v| short(*v))
            .y_label_formatter(&|v| short(*v))
            .draw()?;
        for line in lines {
            let colour = COLOURS[line.colour % COLOURS.len()];
            let dot = if line.points.len() > DOTS_MAX { 0 } else { 3 };
            let points = line.points.iter().copied().filter(|(x, y)| *x > 0.0 && *y > 0.0);
            let style = colour.stroke_width(2);
            let drawn = match line.is_dashed {
                true => chart.draw_series(DashedLineSeries::new(points, 6, 4, style))?,
                false => chart.draw_series(LineSeries::new(points, style).point_size(dot))?,
            };
            drawn.label(&line.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(PAPER)
            .border_style(GRID)
            .label_font(("sans-serif", 14).into_font().color(&INK))
            .draw()
    })
}

/// Bars in groups, a group for each category; a mark across the bar is its least.
pub struct Bars {
    pub categories: Vec<String>,
    /// Name, and a value for each category.
    pub groups: Vec<(String, Vec<f64>)>,
    /// Of each group and category.
    pub least: Vec<Vec<f64>>,
}

pub fn bars(bars: &Bars, y: &str) -> Option<String> {
    let values = bars.groups.iter().flat_map(|(_, values)| values).chain(bars.least.iter().flatten());
    let most = values.copied().fold(0.0, f64::max) * 1.08;
    let count = bars.categories.len();
    if count == 0 || most <= 0.0 {
        return None;
    }
    svg(|root| {
        let mut chart = ChartBuilder::on(root);
        chart.margin(12).x_label_area_size(44).y_label_area_size(64);
        let mut chart = chart.build_cartesian_2d(0.0..count as f64, 0.0..most)?;
        let name = |x: &f64| -> String {
            let n = x.floor();
            let is_middle = (x - n - 0.5).abs() < 1e-6;
            if is_middle {
                bars.categories.get(n as usize).cloned().unwrap_or_default()
            } else {
                String::new()
            }
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(2 * count + 1)
            .y_desc(y)
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 13).into_font().color(&INK))
            .x_label_formatter(&name)
            .draw()?;
        let width = 0.8 / bars.groups.len() as f64;
        for (g, (name, values)) in bars.groups.iter().enumerate() {
            let colour = COLOURS[g % COLOURS.len()];
            let left = move |n: usize| n as f64 + 0.1 + g as f64 * width;
            let boxes = values.iter().enumerate().map(|(n, value)| {
                Rectangle::new([(left(n), 0.0), (left(n) + width * 0.92, *value)], colour.filled())
            });
            chart
                .draw_series(boxes)?
                .label(name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 16, y + 5)], colour.filled()));
            let least = bars.least.get(g).into_iter().flatten().enumerate();
            chart.draw_series(least.map(|(n, value)| {
                PathElement::new([(left(n), *value), (left(n) + width * 0.92, *value)], INK.stroke_width(3))
            }))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(PAPER)
            .border_style(GRID)
            .label_font(("sans-serif", 13).into_font().color(&INK))
            .draw()
    })
}

/// Pieces of a whole, one behind the other: where the time of a request goes. Name, beginning and length.
pub fn waterfall(pieces: &[(String, f64, f64)], x: &str) -> Option<String> {
    let end = pieces.iter().map(|(_, from, length)| from + length).fold(0.0, f64::max);
    if pieces.is_empty() || end <= 0.0 {
        return None;
    }
    svg(|root| {
        let mut chart = ChartBuilder::on(root);
        chart.margin(12).x_label_area_size(44).y_label_area_size(170);
        let mut chart = chart.build_cartesian_2d(0.0..end * 1.1, (pieces.len() as f64)..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_desc(x)
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 14).into_font().color(&INK))
            .draw()?;
        for (n, (name, from, length)) in pieces.iter().enumerate() {
            let (top, bottom) = (n as f64 + 0.15, n as f64 + 0.85);
            let colour = COLOURS[n % COLOURS.len()];
            chart.draw_series([Rectangle::new([(*from, top), (from + length, bottom)], colour.filled())])?;
            let label = ("sans-serif", 13).into_font().color(&INK);
            let left = label.clone().pos(Pos::new(HPos::Right, VPos::Center));
            chart.draw_series([
                EmptyElement::at((0.0, n as f64 + 0.5)) + Text::new(name.clone(), (-8, 0), left)
            ])?;
            let behind = label.pos(Pos::new(HPos::Left, VPos::Center));
            let value = Text::new(short(*length), (5, 0), behind);
            chart.draw_series([EmptyElement::at((from + length, n as f64 + 0.5)) + value])?;
        }
        Ok(())
    })
}

/// The values and some room around, for a logarithmic axis.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (least, most) = values.fold((f64::INFINITY, 0.0), |(a, b): (f64, f64), v| (a.min(v), b.max(v)));
    (least.is_finite() && most > 0.0).then(|| (least / 1.25, most * 1.25))
}

fn svg(draw: impl FnOnce(&DrawingArea<SVGBackend, Shift>) -> Drawn) -> Option<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        // Into memory: nothing there can fail but a range without extent.
        draw(&root).and_then(|()| root.present()).ok()?;
    }
    Some(text)
}

/// 1500 is 1.5k, 0.25 is 0.25, 0.0001 is 1e-4.
pub fn short(value: f64) -> String {
    let digits = |value: f64, unit: &str| match value {
        v if v >= 99.5 || (v - v.round()).abs() <= 0.005 * v => format!("{v:.0}{unit}"),
        v if v >= 9.95 => format!("{v:.1}{unit}"),
        v => format!("{v:.2}{unit}"),
    };
    match value {
        v if v >= 1e6 => digits(v / 1e6, "M"),
        v if v >= 1e3 => digits(v / 1e3, "k"),
        v if v > 0.0 && v < 0.00995 => format!("{v:.0e}"),
        v => digits(v, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_name_what_they_show_and_use_the_pages_ink() {
        let lines = [
            Line {
                name: "measured".into(),
                colour: 0,
                points: vec![(1000.0, 10.0), (20_000.0, 80.0)],
                is_dashed: false,
            },
            Line {
                name: "predicted".into(),
                colour: 0,
                points: vec![(1000.0, 11.0), (20_000.0, 70.0)],
                is_dashed: true,
            },
        ];
        let svg = log_log(&lines, "requests per second", "latency, us").unwrap();
        for part in ["<svg", "measured", "predicted", "requests per second", "#102030", "#C0C8D0"] {
            assert!(svg.contains(part), "{part}");
        }
        let all = Bars {
            categories: vec!["randread-4k".into(), "randwrite-4k".into()],
            groups: vec![("measured".into(), vec![1.0, 1.6]), ("in place".into(), vec![1.0, 6.0])],
            least: vec![vec![1.0, 1.5]],
        };
        let svg = bars(&all, "device bytes per byte").unwrap();
        assert!(svg.contains("randwrite-4k") && svg.contains("in place"), "{svg}");
        let svg = waterfall(&[("receive".into(), 0.0, 2.0), ("encode".into(), 2.0, 1.5)], "us").unwrap();
        assert!(svg.contains("encode") && svg.contains("1.50"));
    }

    #[test]
    fn nothing_to_show_is_no_chart() {
        assert!(log_log(&[], "x", "y").is_none());
        assert!(bars(&Bars { categories: vec![], groups: vec![], least: vec![] }, "y").is_none());
        assert!(waterfall(&[], "x").is_none());
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.25, "0.25"),
            (0.0001, "1e-4"),
            (0.0, "0"),
            (1.0, "1"),
            (12.34, "12.3"),
            (999.0, "999"),
            (1500.0, "1.50k"),
            (2e6, "2M"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
