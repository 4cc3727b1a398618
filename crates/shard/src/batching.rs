//! When the next frame starts. Pure.

/// What decides when the next frame starts. Hosts that keep a queue full send a burst of new commands when a
/// frame completes; starting with the first few of them would make a small frame, then a second one, for ever.
/// So a frame waits, a fraction of a frame's usual latency at most, for about as much as there usually is; and a
/// second one starts beside a running one only when it is worth its header: this keeps frames large at depth 32
/// and costs a lone writer nothing (DESIGN §1, §11; ARCHITECTURE, "Batching").
pub(crate) struct Batching {
    /// Blocks that wait, and how long the first of them has.
    pub pending: usize,
    pub pending_ns: u64,
    pub in_flight_frames: usize,
    pub in_flight_blocks: usize,
    /// How long the oldest frame in flight has been under way.
    pub running_ns: u64,
    /// Median latency of recent frames.
    pub usual_ns: u64,
    /// Blocks that were recently pending or in flight at once: the depth of the hosts' queues.
    pub expected: usize,
}

/// As much as makes a frame worth sending whatever else goes on.
const FULL_BLOCKS: usize = 192;

impl Batching {
    /// 0: start now. `u64::MAX`: something has to happen first. Else look again after so many nanoseconds.
    pub fn wait_ns(&self) -> u64 {
        if self.pending >= FULL_BLOCKS {
            return 0;
        }
        if self.in_flight_frames == 0 {
            let enough = self.pending >= (self.expected * 3 / 4).clamp(1, FULL_BLOCKS);
            let limit = self.usual_ns / 3;
            return if enough { 0 } else { limit.saturating_sub(self.pending_ns) };
        }
        let worth = match self.in_flight_blocks {
            0..=2 => self.pending >= self.in_flight_blocks,
            more => self.pending >= 2 * more,
        };
        let slow = 4 * self.usual_ns;
        match worth || self.running_ns >= slow {
            true => 0,
            false => slow - self.running_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batching(pending: usize, in_flight: usize, expected: usize) -> Batching {
        Batching {
            pending,
            pending_ns: 0,
            in_flight_frames: (in_flight > 0) as usize,
            in_flight_blocks: in_flight,
            running_ns: 0,
            usual_ns: 100_000,
            expected,
        }
    }

    #[test]
    fn a_lone_writer_never_waits() {
        assert_eq!(batching(1, 0, 1).wait_ns(), 0);
    }

    #[test]
    fn the_first_of_a_burst_waits_a_third_of_a_frames_latency_at_most() {
        assert_eq!(batching(4, 0, 32).wait_ns(), 33_333);
        assert_eq!(batching(24, 0, 32).wait_ns(), 0);
        assert_eq!(Batching { pending_ns: 33_333, ..batching(4, 0, 32) }.wait_ns(), 0);
    }

    #[test]
    fn a_second_frame_has_to_be_worth_it_or_the_first_slow() {
        assert_eq!(batching(1, 1, 2).wait_ns(), 0, "two writers do not wait for each other");
        assert_eq!(batching(16, 16, 32).wait_ns(), 400_000);
        assert_eq!(batching(22, 10, 32).wait_ns(), 0);
        assert_eq!(Batching { running_ns: 400_000, ..batching(1, 31, 32) }.wait_ns(), 0);
        assert_eq!(batching(200, 240, 2000).wait_ns(), 0, "a full frame goes at once");
    }
}
