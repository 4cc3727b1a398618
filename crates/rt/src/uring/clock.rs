//! A reactor's monotonic clock: the processor's time stamp counter where the system itself keeps time by it, the
//! system's clock elsewhere.
//!
//! Reading the counter takes a quarter of a call of the system's clock, and a command reads the clock several times.
//! Ticks become nanoseconds by a line through a point that is set anew every second at most, with the slope of the
//! second before and what makes up for the difference to the system's clock: continuous, never backwards, and within
//! a microsecond of CLOCK_MONOTONIC, whose corrections (NTP) it follows.

use peristyle_base::Instant;
use std::cell::Cell;

/// The first measurement of the counter's rate takes so long; until then the system's clock is asked.
const FIRST_NS: u64 = 20_000_000;
/// Time between two points of the line at most.
const PERIOD_NS: u64 = 1_000_000_000;
/// A difference to the system's clock above this is no drift: the machine was suspended or moved.
const DRIFT_MAX_NS: u64 = 1_000_000;
/// Looks at both clocks for one point; the least disturbed counts.
const LOOKS: usize = 5;

/// Slopes are nanoseconds per tick, in units of 2^-32.
const SLOPE_BITS: u32 = 32;

/// One moment on both clocks.
#[derive(Clone, Copy, Default)]
struct Point {
    ticks: u64,
    nanos: u64,
}

/// Where the line starts, and until when it holds.
#[derive(Clone, Copy, Default)]
struct Line {
    start: Point,
    slope: u64,
    /// The slope without what makes up for a difference.
    measured: u64,
    /// Ticks after the start; 0: there is no line.
    length: u64,
}

pub(super) struct Clock {
    line: Cell<Line>,
    /// When both clocks were compared last.
    compared: Cell<Option<Point>>,
    usable: bool,
    /// What the system's clock says must not be before what the counter said.
    least: Cell<u64>,
}

impl Clock {
    pub(super) fn new() -> Clock {
        Clock {
            line: Cell::default(),
            compared: Cell::new(None),
            usable: counter::is_usable(),
            least: Cell::new(0),
        }
    }

    #[inline]
    pub(super) fn now(&self) -> Instant {
        let line = self.line.get();
        // A counter that went backwards is far beyond the end, too.
        let passed = counter::ticks().wrapping_sub(line.start.ticks);
        if passed < line.length {
            return Instant(line.at(passed));
        }
        Instant(self.beyond())
    }

    /// The line does not reach until now: the system's clock tells, and how the line goes on.
    #[cold]
    fn beyond(&self) -> u64 {
        let (nanos, least) = (monotonic_nanos(), self.least.get());
        let is_time = self.compared.get().is_none_or(|last| nanos >= last.nanos + FIRST_NS);
        if self.usable && is_time && nanos >= least {
            let point = look();
            let next = self.compared.get().and_then(|last| self.line.get().next(last, point));
            self.compared.set(Some(point));
            if let Some(next) = next {
                self.line.set(next);
                return next.start.nanos;
            }
            // The first comparison, or the counter is not what it was: the machine was suspended, or moved.
        }
        let line = self.line.take();
        self.least.set(nanos.max(least).max(line.at(line.length)));
        self.least.get()
    }
}

impl Line {
    #[inline]
    fn at(&self, passed: u64) -> u64 {
        self.start.nanos + (u128::from(passed) * u128::from(self.slope) >> SLOPE_BITS) as u64
    }

    /// The next piece: it starts where this one has come to, and ends where the system's clock will be.
    fn next(&self, last: Point, point: Point) -> Option<Line> {
        let nanos = point.nanos.checked_sub(last.nanos).filter(|&n| n > 0)?;
        let ticks = point.ticks.checked_sub(last.ticks).filter(|&n| n > 0)?;
        let measured = slope(nanos, ticks);
        let mut start = point;
        if self.length > 0 {
            let beyond = point.ticks.checked_sub(self.start.ticks)?.checked_sub(self.length)?;
            start.nanos =
                self.at(self.length) + (u128::from(beyond) * u128::from(measured) >> SLOPE_BITS) as u64;
            let drift = start.nanos.abs_diff(point.nanos);
            if drift > DRIFT_MAX_NS || measured.abs_diff(self.measured) > self.measured / 1000 {
                return None;
            }
        }
        let period = PERIOD_NS.min(2 * nanos);
        let length = (u128::from(period) << SLOPE_BITS) / u128::from(measured.max(1));
        let meets = (point.nanos + period).checked_sub(start.nanos)?;
        Some(Line { start, slope: slope(meets, length as u64), length: length as u64, measured })
    }
}

fn slope(nanos: u64, ticks: u64) -> u64 {
    ((u128::from(nanos) << SLOPE_BITS) / u128::from(ticks.max(1))) as u64
}

/// The same moment on both clocks, as exactly as it can be had.
fn look() -> Point {
    let one = || {
        let before = counter::ticks();
        let nanos = monotonic_nanos();
        let took = counter::ticks().wrapping_sub(before);
        (took, Point { ticks: before.wrapping_add(took / 2), nanos })
    };
    let best = (0..LOOKS).map(|_| one()).min_by_key(|look| look.0);
    best.expect("at least one look").1
}

fn monotonic_nanos() -> u64 {
    system_nanos(libc::CLOCK_MONOTONIC)
}

pub(super) fn system_nanos(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec into a live local; these clocks always exist.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(target_arch = "x86_64")]
mod counter {
    /// The counter runs at one rate through all states of the processor, and the kernel keeps time by it: then it is
    /// the same on all cores, and not trapped by a hypervisor.
    pub(super) fn is_usable() -> bool {
        use std::arch::x86_64::__cpuid;
        const INVARIANT: u32 = 1 << 8;
        let invariant = __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & INVARIANT != 0;
        let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        invariant && std::fs::read_to_string(source).is_ok_and(|name| name.trim() == "tsc")
    }

    #[inline]
    pub(super) fn ticks() -> u64 {
        // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it unless one asked for
        // the contrary (PR_SET_TSC).
        unsafe { std::arch::x86_64::_rdtsc() }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod counter {
    pub(super) fn is_usable() -> bool {
        false
    }
    pub(super) fn ticks() -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both clocks may be off by what a look costs and by what the line drifts within a second.
    const TOLERANCE_NS: u64 = 3_000;

    #[test]
    fn the_clock_agrees_with_the_system_and_never_goes_back() {
        let clock = Clock::new();
        let (start, mut last) = (monotonic_nanos(), 0);
        while monotonic_nanos() < start + 400_000_000 {
            let before = monotonic_nanos();
            let now = clock.now().0;
            let after = monotonic_nanos();
            assert!(now >= last, "{last} {now}");
            assert!(before <= now + TOLERANCE_NS && now <= after + TOLERANCE_NS, "{before} {now} {after}");
            last = now;
        }
        assert_eq!(clock.line.get().length > 0, counter::is_usable(), "the counter is used where it can be");
    }

    #[test]
    fn a_clock_that_nobody_read_for_a_while_is_right_at_once() {
        let clock = Clock::new();
        clock.now();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(60));
            let (before, now) = (monotonic_nanos(), clock.now().0);
            assert!(before <= now + TOLERANCE_NS && now <= monotonic_nanos() + TOLERANCE_NS);
        }
    }

    #[test]
    fn a_difference_to_the_system_is_made_up_for_within_a_period() {
        if !counter::is_usable() {
            return;
        }
        let clock = Clock::new();
        while clock.line.get().length == 0 {
            clock.now();
        }
        // As if NTP had corrected the system's clock.
        let line = clock.line.get();
        let start = Point { nanos: line.start.nanos + 200_000, ..line.start };
        clock.line.set(Line { start, ..line });
        std::thread::sleep(std::time::Duration::from_millis(150));
        let mut last = clock.now().0;
        assert!(last > monotonic_nanos() + 100_000, "not at once: time would go backwards");
        for _ in 0..6 {
            std::thread::sleep(std::time::Duration::from_millis(100));
            let now = clock.now().0;
            assert!(now > last);
            last = now;
        }
        // Of several looks at both clocks the one that was interrupted least.
        let look = |_| {
            let (before, now, after) = (monotonic_nanos(), clock.now().0, monotonic_nanos());
            (after - before, now, after)
        };
        let (_, now, system) = (0..20).map(look).min().expect("some looks");
        assert!(now.abs_diff(system) < 50_000, "{now} {system}");
    }

    #[test]
    fn a_clock_that_is_off_by_seconds_starts_anew_and_does_not_go_back() {
        if !counter::is_usable() {
            return;
        }
        for by in [-3_000_000_000i64, 300_000_000] {
            let clock = Clock::new();
            while clock.line.get().length == 0 {
                clock.now();
            }
            let line = clock.line.get();
            let start = Point { nanos: line.start.nanos.wrapping_add_signed(by), ..line.start };
            clock.line.set(Line { start, ..line });
            let mut last = clock.now().0;
            // The piece ends, the clock waits until it is right again, then trusts the counter again.
            for _ in 0..50 {
                std::thread::sleep(std::time::Duration::from_millis(10));
                let now = clock.now().0;
                assert!(now >= last);
                last = now;
            }
            assert!(last.abs_diff(monotonic_nanos()) < 100_000, "{by} {last} {}", monotonic_nanos());
            assert!(clock.line.get().length > 0);
        }
    }
}
