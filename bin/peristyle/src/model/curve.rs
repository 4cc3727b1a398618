//! `model curve`: predicted, then measured.

use super::profile::Measurer;
use super::{CurveOptions, show};
use crate::bench::Rw;
use crate::client::Client;
use crate::failure::Failure;
use peristyle_bench::model::curve::{closed, depths, knee, off_percent};
use peristyle_bench::model::fit::{Burst, Fit};
use peristyle_bench::model::queue::QueueError;
use peristyle_bench::model::sim::{Load, Point, evaluate};
use peristyle_bench::model::stage::Model;
use peristyle_bench::model::whatif::Change;
use peristyle_bench::report::Report;
use std::path::PathBuf;

/// The load of the second bar, percent of the throughput predicted for the knee.
pub const BAR_LOAD: u32 = 70;
const THROUGHPUT_BAR: f64 = 15.0;
const P99_BAR: f64 = 25.0;

/// Commands per second, and microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Side {
    pub throughput: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// A load: a depth, or percent of the predicted knee.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub load: u32,
    /// `None`: more than can be served.
    pub predicted: Option<Side>,
    pub measured: Option<Side>,
    /// Of the measured commands of an open loop.
    pub late_share: f64,
    pub generator_busy: f64,
}

/// What a change does.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// Empty: none.
    pub change: String,
    pub knee: (u32, f64),
    /// At the rate of [`BAR_LOAD`] without the change; `None`: more than can be served.
    pub at_load: Option<Side>,
    pub limit: Option<(String, f64)>,
}

/// One workload's prediction and measurement.
pub struct Curve {
    pub rw: Rw,
    pub bursts: Vec<Burst>,
    pub fit: Fit,
    pub model: Model,
    pub alone_us: f64,
    pub knee: (u32, f64),
    pub measured_knee: Option<(u32, f64)>,
    pub closed: Vec<Row>,
    pub open: Vec<Row>,
    pub changes: Vec<Changed>,
}

/// A bar: what was off by how many percent, and how many it may be.
pub struct Bar {
    pub name: &'static str,
    pub off: f64,
    pub most: f64,
}

impl Bar {
    pub fn holds(&self) -> bool {
        self.off.abs() <= self.most
    }
}

impl Curve {
    /// None when it was not measured.
    pub fn bars(&self) -> Vec<Bar> {
        let mut bars = Vec::new();
        // At the same depth: where the measured curve is flat, its own knee may be at any of several.
        let knee = self.closed.iter().find(|row| row.load == self.knee.0);
        if let Some(Side { throughput: measured, .. }) = knee.and_then(|row| row.measured) {
            let off = off_percent(self.knee.1, measured);
            bars.push(Bar { name: "throughput at the knee", off, most: THROUGHPUT_BAR });
        }
        let at = self.open.iter().find(|row| row.load == BAR_LOAD);
        if let Some(Row { predicted: Some(predicted), measured: Some(measured), .. }) = at {
            let off = off_percent(predicted.p99_us, measured.p99_us);
            bars.push(Bar { name: "p99 at 70 % load", off, most: P99_BAR });
        }
        bars
    }
}

pub fn command(options: &CurveOptions, admin: Option<PathBuf>) -> Result<(), Failure> {
    let mut node = options.stages.then(|| Client::connect(admin)).transpose()?;
    let mut curves = Vec::new();
    for &rw in &options.rw {
        curves.push(one(&Measurer { options, rw }, node.as_mut())?);
    }
    if options.json {
        print!("{}", crate::render::json(&show::document(options, &curves)));
    } else {
        curves.iter().for_each(|curve| print!("{}", show::text(curve)));
    }
    let missed = curves.iter().flat_map(|curve| curve.bars().into_iter().map(move |bar| (curve.rw, bar)));
    let missed: Vec<String> = missed
        .filter(|(_, bar)| !bar.holds())
        .map(|(rw, bar)| format!("{}: {} is off by {:+.0} %", show::name(rw), bar.name, bar.off))
        .collect();
    if options.bar && !missed.is_empty() { Err(Failure::failed(missed.join("; "))) } else { Ok(()) }
}

fn one(measurer: &Measurer<'_>, node: Option<&mut Client>) -> Result<Curve, Failure> {
    let (options, name) = (measurer.options, show::name(measurer.rw));
    eprintln!("{name}: a profile at light load");
    let (profile, alone) = measurer.profile(node)?;
    let fit = Fit::new(&profile).map_err(|why| Failure::failed(format!("{name}: {why}")))?;
    eprintln!("{name}: simulating {} loads", depths(options.qd).len() + options.loads.len());
    let mut curve = predict(options, measurer.rw, fit).map_err(Failure::failed)?;
    curve.bursts = profile.bursts;
    curve.alone_us = alone.all().latency.mean() / 1000.0;
    for change in &options.what_if {
        match changed(options, &curve, Some(change)) {
            Ok(changed) => curve.changes.push(changed),
            // Reads do not encode: another workload may.
            Err(why) if options.rw.len() > 1 => eprintln!("{name}: left out: {why}"),
            Err(why) => return Err(why),
        }
    }
    if !options.no_measure {
        compare(measurer, &mut curve)?;
    }
    Ok(curve)
}

fn predict(options: &CurveOptions, rw: Rw, fit: Fit) -> Result<Curve, QueueError> {
    let (model, depths) = (fit.closed(), depths(options.qd));
    let points = closed(&model, &depths, options.requests as usize, options.seed)?;
    let all: Vec<(u32, f64)> = depths.iter().copied().zip(points.iter().map(|p| p.throughput)).collect();
    let knee = knee(&all).ok_or(QueueError::Invalid)?;
    let rows = depths.iter().zip(&points).map(|(depth, point)| Row::of(*depth, Some(point)));
    let mut curve = Curve {
        rw,
        closed: rows.collect(),
        open: Vec::new(),
        knee,
        measured_knee: None,
        changes: Vec::new(),
        alone_us: 0.0,
        bursts: Vec::new(),
        fit,
        model,
    };
    let open = curve.fit.open();
    for &load in &options.loads {
        let point = at(options, &open, curve.rate(load))?;
        curve.open.push(Row::of(load, point.as_ref()));
    }
    if !options.what_if.is_empty() {
        let as_it_is = changed(options, &curve, None).map_err(|_| QueueError::Invalid)?;
        curve.changes.push(as_it_is);
    }
    Ok(curve)
}

/// `None`: more than can be served.
fn at(options: &CurveOptions, open: &Model, per_second: f64) -> Result<Option<Point>, QueueError> {
    match evaluate(open, Load::Open { per_second }, options.requests as usize, options.seed) {
        Ok(point) => Ok(Some(point)),
        Err(QueueError::Overloaded { .. }) => Ok(None),
        Err(QueueError::Invalid) => Err(QueueError::Invalid),
    }
}

fn changed(options: &CurveOptions, curve: &Curve, change: Option<&Change>) -> Result<Changed, Failure> {
    let (mut closed_model, mut open) = (curve.fit.closed(), curve.fit.open());
    if let Some(change) = change {
        let models = [&mut closed_model, &mut open];
        models.into_iter().try_for_each(|model| change.apply(model)).map_err(Failure::usage)?;
    }
    let depths = depths(options.qd);
    let points =
        closed(&closed_model, &depths, options.requests as usize, options.seed).map_err(Failure::failed)?;
    let all: Vec<(u32, f64)> = depths.iter().copied().zip(points.iter().map(|p| p.throughput)).collect();
    let point = at(options, &open, curve.rate(BAR_LOAD)).map_err(Failure::failed)?;
    Ok(Changed {
        change: change.map(Change::to_string).unwrap_or_default(),
        knee: knee(&all).unwrap_or_default(),
        at_load: point.as_ref().map(Side::of),
        limit: closed_model.bottleneck().map(|(name, most)| (name.to_owned(), most)),
    })
}

fn compare(measurer: &Measurer<'_>, curve: &mut Curve) -> Result<(), Failure> {
    let name = show::name(measurer.rw);
    for row in &mut curve.closed {
        eprintln!("{name}: measuring at depth {}", row.load);
        row.saw(&measurer.load(row.load, None)?);
    }
    let all = curve.closed.iter().filter_map(|row| Some((row.load, row.measured?.throughput)));
    curve.measured_knee = knee(&all.collect::<Vec<_>>());
    let knee = curve.knee.1;
    for row in &mut curve.open {
        let rate = knee * f64::from(row.load) / 100.0;
        eprintln!("{name}: measuring at {rate:.0} commands/s");
        row.saw(&measurer.load(measurer.options.qd, Some(rate))?);
    }
    Ok(())
}

impl Curve {
    /// Commands per second at so many percent of the predicted knee.
    pub fn rate(&self, percent: u32) -> f64 {
        self.knee.1 * f64::from(percent) / 100.0
    }
}

impl Row {
    fn of(load: u32, predicted: Option<&Point>) -> Row {
        Row { load, predicted: predicted.map(Side::of), measured: None, late_share: 0.0, generator_busy: 0.0 }
    }
    fn saw(&mut self, report: &Report) {
        let all = report.all();
        let us = |share| all.latency.quantile(share) as f64 / 1000.0;
        self.measured = Some(Side {
            throughput: all.per_second(report.elapsed),
            mean_us: all.latency.mean() / 1000.0,
            p50_us: us(0.5),
            p99_us: us(0.99),
        });
        (self.late_share, self.generator_busy) = (report.late_share(), report.busy_share);
    }
}

impl Side {
    fn of(point: &Point) -> Side {
        let Point { throughput, mean_us, p50_us, p99_us, .. } = *point;
        Side { throughput, mean_us, p50_us, p99_us }
    }
}
