//! The picture: a line of figures and curves for each path, its stages, and the devices' legs.

use super::model::{HISTORY, Model, Point};
use crate::profile::{PathFigures, Row as Stage};
use crate::render::{microseconds, percent};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table};

/// Names and widths.
const STAGES: [(&str, u16); 12] = [
    ("stage", 17),
    ("rate/s", 7),
    ("flight", 6),
    ("queue", 6),
    ("mean", 6),
    ("3 s", 6),
    ("p50", 6),
    ("p99", 6),
    ("p99.9", 6),
    ("to end", 6),
    ("var", 6),
    ("little", 6),
];
const LEGS: [(&str, u16); 9] = [
    ("device", 17),
    ("appends", 7),
    ("queued", 7),
    ("p99", 6),
    ("at device", 9),
    ("p99", 6),
    ("reads", 7),
    ("at device", 9),
    ("p99", 6),
];

pub fn draw(frame: &mut Frame, model: &Model) {
    let paths = model.paths();
    let devices = paths.first().map_or(0, |(_, p)| p.devices.len() + p.remote.len());
    let mut heights = vec![Constraint::Length(1)];
    heights.extend(paths.iter().map(|_| Constraint::Length(4)));
    heights.extend(paths.iter().map(|(_, p)| Constraint::Length(p.stages.len() as u16 + 4)));
    heights.push(Constraint::Min(devices.min(4) as u16 + 3));
    let areas = Layout::vertical(heights).split(frame.area());
    frame.render_widget(title(model), areas[0]);
    for (place, (i, path)) in paths.iter().enumerate() {
        head(frame, areas[1 + place], path, model.history[*i].iter());
        stages(frame, areas[1 + paths.len() + place], path);
    }
    if let Some(profile) = &model.profile {
        legs(frame, areas[areas.len() - 1], &profile.paths);
    }
}

fn title(model: &Model) -> Paragraph<'static> {
    let up = format!(" up {} s, microseconds ", model.uptime_ms / 1000);
    let mut spans = vec![Span::styled("peristyle", Style::new().add_modifier(Modifier::BOLD)), up.into()];
    match &model.profile {
        None => spans.push("waiting for the second look ".into()),
        Some(p) if !p.counted => spans.push(warning("this node was built to count nothing ".into())),
        Some(p) if !p.broken_laws().is_empty() => {
            spans.push(warning(format!("Little's law is off: {} ", p.broken_laws().join(", "))));
        }
        Some(_) => {}
    }
    if model.paused {
        spans.push(warning("HELD ".into()));
    }
    spans.push(Span::styled("q quit  r reads  w writes  b both  p hold", Style::new().fg(Color::DarkGray)));
    Paragraph::new(Line::from(spans))
}

fn warning(text: String) -> Span<'static> {
    Span::styled(text, Style::new().fg(Color::Yellow))
}

/// Figures of the last second, and the curves of the last minute.
fn head<'a>(frame: &mut Frame, area: Rect, path: &PathFigures, history: impl Iterator<Item = &'a Point>) {
    let points: Vec<&Point> = history.collect();
    let texts = [
        (format!("{} {:.0}/s", path.path, path.total.rate), curve(&points, |p| p.rate), Color::Cyan),
        (format!("{:.1} MB/s", path.bytes_per_s / 1e6), curve(&points, |p| p.bytes_per_s / 1e3), Color::Blue),
        (
            format!("p50 {}", microseconds(path.total.p50_us)),
            curve(&points, |p| p.p50_us * 10.0),
            Color::Green,
        ),
        (
            format!("p99 {}", microseconds(path.total.p99_us)),
            curve(&points, |p| p.p99_us * 10.0),
            Color::Magenta,
        ),
    ];
    let areas = Layout::horizontal([Constraint::Ratio(1, 4); 4]).split(area);
    for ((text, data, color), area) in texts.into_iter().zip(areas.iter()) {
        let block = Block::new().borders(Borders::TOP).title(text);
        // The newest second is at the right.
        let width = block.inner(*area).width as usize;
        let data = &data[data.len().saturating_sub(width.min(HISTORY))..];
        frame
            .render_widget(Sparkline::default().block(block).data(data).style(Style::new().fg(color)), *area);
    }
}

pub fn curve(points: &[&Point], of: impl Fn(&Point) -> f64) -> Vec<u64> {
    points.iter().map(|p| of(p).max(0.0).round() as u64).collect()
}

fn header(columns: &[(&'static str, u16)]) -> (Row<'static>, Vec<Constraint>) {
    let cells = columns.iter().enumerate().map(|(i, (name, _))| cell(name.to_string(), i > 0));
    let style = Style::new().add_modifier(Modifier::BOLD);
    (Row::new(cells).style(style), columns.iter().map(|(_, width)| Constraint::Length(*width)).collect())
}

fn cell(text: String, right: bool) -> Cell<'static> {
    let line = Line::from(text);
    Cell::from(if right { line.right_aligned() } else { line })
}

fn cells(texts: Vec<String>) -> Row<'static> {
    Row::new(texts.into_iter().enumerate().map(|(i, text)| cell(text, i > 0)))
}

fn stages(frame: &mut Frame, area: Rect, path: &PathFigures) {
    let (header, widths) = header(&STAGES);
    let row = |s: &Stage| {
        let row = cells(stage_texts(s));
        let most = path.variance_most.as_ref() == Some(&s.stage);
        let style = if most { Style::new().fg(Color::Yellow) } else { Style::new() };
        if s.little_holds { row.style(style) } else { row.style(Style::new().fg(Color::Red)) }
    };
    let mut gap = vec![String::new(); STAGES.len()];
    gap[0] = "between stages".into();
    gap[4] = microseconds(path.between_us);
    gap[10] = percent(1.0 - path.variance_sum);
    let mut total = stage_texts(&path.total);
    total[0] = "end to end".into();
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let rows = path.stages.iter().map(row).chain([cells(gap), cells(total).style(bold)]);
    let block = Block::new().borders(Borders::TOP).title(format!("{} stages", path.path));
    frame.render_widget(Table::new(rows, widths).header(header).block(block), area);
}

fn stage_texts(s: &Stage) -> Vec<String> {
    let mut row = vec![s.stage.clone(), format!("{:.0}", s.rate), format!("{:.2}", s.in_flight)];
    row.push(s.queue.map_or(String::new(), |queue| format!("{queue:.2}")));
    row.extend([s.mean_us, s.mean_3s_us, s.p50_us, s.p99_us, s.p99_9_us, s.remaining_us].map(microseconds));
    row.push(percent(s.variance_share));
    row.push(format!("{:.3}", s.little_error));
    row
}

/// The slowest leg of each command, and both paths' legs of each device; one of another node has the network in it.
fn legs(frame: &mut Frame, area: Rect, paths: &[PathFigures]) {
    let [read, write] = paths else { return };
    let (header, widths) = header(&LEGS);
    let rate = |s: &Stage| format!("{:.0}", s.rate);
    let rows = write.devices.iter().zip(&read.devices).map(|(w, r)| {
        cells(vec![
            w.device.rsplit('/').next().unwrap_or_default().to_owned(),
            rate(&w.service),
            microseconds(w.queue.mean_us),
            microseconds(w.queue.p99_us),
            microseconds(w.service.mean_us),
            microseconds(w.service.p99_us),
            rate(&r.service),
            microseconds(r.service.mean_us),
            microseconds(r.service.p99_us),
        ])
    });
    let remote = write.remote.iter().zip(&read.remote).map(|(w, r)| {
        cells(vec![
            w.device.clone(),
            rate(&w.leg),
            String::new(),
            String::new(),
            microseconds(w.leg.mean_us),
            microseconds(w.leg.p99_us),
            rate(&r.leg),
            microseconds(r.leg.mean_us),
            microseconds(r.leg.p99_us),
        ])
    });
    let slowest = cells(vec![
        "slowest of each".into(),
        rate(&write.slowest),
        String::new(),
        String::new(),
        microseconds(write.slowest.mean_us),
        microseconds(write.slowest.p99_us),
        rate(&read.slowest),
        microseconds(read.slowest.mean_us),
        microseconds(read.slowest.p99_us),
    ]);
    let slowest = slowest.style(Style::new().add_modifier(Modifier::BOLD));
    let title = match write.remote.is_empty() {
        true => "devices",
        false => "devices; those of other nodes with the network and all that it takes there",
    };
    let rows = [slowest].into_iter().chain(rows).chain(remote);
    let block = Block::new().borders(Borders::TOP).title(title);
    frame.render_widget(Table::new(rows, widths).header(header).block(block), area);
}
