//! `model queue`: a queue's closed form.

use super::QueueOptions;
use crate::failure::Failure;
use crate::render::{json, table};
use peristyle_bench::model::queue::{Mmc, mg1_mean_wait};
use serde_json::json;

/// Per second.
pub fn rate(text: &str) -> Result<f64, String> {
    let bad = || format!("`{text}` is not a rate: write 1/min, 200k/s or 0.5/ms");
    let (number, unit) = text.split_once('/').ok_or_else(bad)?;
    let seconds = match unit {
        "s" => 1.0,
        "min" => 60.0,
        "ms" => 1e-3,
        _ => return Err(bad()),
    };
    let (digits, factor) = match number.as_bytes().last() {
        Some(b'k') => (&number[..number.len() - 1], 1e3),
        Some(b'M') => (&number[..number.len() - 1], 1e6),
        _ => (number, 1.0),
    };
    let value: f64 = digits.parse().map_err(|_| bad())?;
    Some(value * factor / seconds).filter(|rate| *rate > 0.0 && rate.is_finite()).ok_or_else(bad)
}

/// Seconds.
pub fn service(text: &str) -> Result<f64, String> {
    let bad = || format!("`{text}` is not a time: write 3.1us, 2ms, 60s or 1min");
    let digits = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?;
    let factor = match &text[digits..] {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "min" => 60.0,
        _ => return Err(bad()),
    };
    let value: f64 = text[..digits].parse().map_err(|_| bad())?;
    Some(value * factor).filter(|time| *time > 0.0 && time.is_finite()).ok_or_else(bad)
}

/// Three digits and a unit.
fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.2} us", s * 1e6),
    }
}

pub fn command(options: &QueueOptions) -> Result<(), Failure> {
    let queue = Mmc::new(options.rate, options.service, options.servers).map_err(Failure::failed)?;
    let general = match options.cv2 {
        Some(_) if options.servers > 1 => return Err(Failure::usage("--cv2 is for one server")),
        Some(cv2) => Some(mg1_mean_wait(options.rate, options.service, cv2).map_err(Failure::usage)?),
        None => None,
    };
    if options.json {
        let document = json!({
            "rate_per_s": options.rate,
            "service_s": options.service,
            "servers": options.servers,
            "utilisation": queue.utilisation(),
            "waits": queue.waits(),
            "mean_wait_s": queue.mean_wait(),
            "mean_in_system_s": queue.mean_in_system(),
            "in_system": queue.in_system(),
            "wait_p99_s": queue.wait_quantile(0.99),
            "p50_s": queue.quantile(0.5),
            "p99_s": queue.quantile(0.99),
            "p99.9_s": queue.quantile(0.999),
            "mg1_mean_wait_s": general,
            "mg1_mean_in_system_s": general.map(|wait| wait + options.service),
        });
        print!("{}", json(&document));
        return Ok(());
    }
    let line = |name: &str, value: String| vec![name.to_owned(), value];
    let mut lines = vec![
        line("utilisation", format!("{:.1} %", queue.utilisation() * 100.0)),
        line("have to wait (Erlang C)", format!("{:.1} %", queue.waits() * 100.0)),
        line("mean wait", time(queue.mean_wait())),
        line("p99 of the wait", time(queue.wait_quantile(0.99))),
        line("mean in the system", time(queue.mean_in_system())),
        line("p50, p99, p99.9 in the system", [0.5, 0.99, 0.999].map(|q| time(queue.quantile(q))).join(", ")),
        line("in the system on average (Little)", format!("{:.2}", queue.in_system())),
    ];
    if let Some(wait) = general {
        lines.push(line("M/G/1: mean wait", time(wait)));
        lines.push(line("M/G/1: mean in the system", time(wait + options.service)));
    }
    print!("{}", table(&[&format!("M/M/{}", options.servers), ""], &[1], lines));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_times_have_units() {
        assert_eq!((rate("1/min"), rate("200k/s"), rate("0.5/ms")), (Ok(1.0 / 60.0), Ok(200e3), Ok(500.0)));
        assert_eq!((service("60s"), service("1min"), service("2ms")), (Ok(60.0), Ok(60.0), Ok(2e-3)));
        for bad in ["", "1", "1/h", "-1/s", "0/s", "x/s", "nan/s", "inf/s"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
        for bad in ["", "1", "1h", "-1s", "0s", "s", "nans"] {
            assert!(service(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_keep_their_digits() {
        assert_eq!([80.0, 0.00123, 3.1e-6].map(time), ["80.00 s", "1.23 ms", "3.10 us"]);
    }
}
