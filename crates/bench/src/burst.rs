//! Bursts: so many commands at once, and the next ones when all of them have been answered. With idle time between, this is light
//! load, and yet shows what a target does with several commands at a time ([`crate::model::fit`]).

use crate::contents::Contents;
use crate::host::{HostError, Payload, Queue};
use crate::pattern::Places;
use crate::random::Random;
use crate::session::{Namespace, Session, SessionError};
use peristyle_base::Duration;
use peristyle_rt::{Buf, BufConfig, View};

/// Bursts that are made before the first one counts.
const WARMUP: u32 = 20;

/// Bursts of one size on one connection; what they do is as in [`crate::load::Workload`].
#[derive(Clone, Debug, PartialEq)]
pub struct Bursts {
    pub size: u32,
    pub count: u32,
    /// Idle time before each.
    pub gap: Duration,
    pub block_bytes: u32,
    pub pattern: crate::pattern::Pattern,
    /// Percent.
    pub read_share: u8,
    pub seed: u64,
}

/// What was seen of each burst; microseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// From its beginning until its last answer.
    pub last_us: Vec<f64>,
    /// The generator's reactor at work.
    pub host_us: Vec<f64>,
    /// Commands that were answered with an error.
    pub errors: u64,
    /// Bursts, with those that did not count.
    pub made: u32,
}

impl Bursts {
    /// Buffers that the generator's reactor needs.
    pub fn buffers(&self) -> BufConfig {
        crate::load::buffers_for(self.block_bytes, u64::from(self.size) + 1)
    }

    /// Makes them, one after the other.
    pub async fn run(&self, session: &Session, namespace: Namespace) -> Result<Seen, SessionError> {
        session.request_queues(1).await?;
        let queue = session.ticket().queue(1, self.size).await?;
        let places =
            Places::new(self.pattern, namespace.bytes / u64::from(self.block_bytes), self.block_bytes);
        let mut random = Random::new(self.seed);
        let mut buffers: Vec<Option<Buf>> = Vec::new();
        for _ in 0..self.size {
            buffers.push(Some(Buf::alloc(self.block_bytes as usize).await));
        }
        let data = self.data(&mut random).await;
        let mut seen = Seen { made: self.count + WARMUP, ..Seen::default() };
        // The turn that this goes on in is counted at its end: from one look to the next it is one burst's work.
        let mut busy: Option<u64> = None;
        for n in 0..self.count + WARMUP {
            peristyle_rt::sleep(self.gap).await;
            let now_busy = peristyle_rt::busy_nanos();
            if let Some(before) = busy.replace(now_busy)
                && n > WARMUP
            {
                seen.host_us.push((now_busy - before) as f64 / 1000.0);
            }
            let began = peristyle_rt::now();
            let commands: Vec<_> = buffers
                .iter_mut()
                .map(|slot| {
                    let offset = places.next(&mut random) * u64::from(self.block_bytes);
                    let read = random.below(100) < u64::from(self.read_share);
                    one(&queue, namespace, (read, offset, self.block_bytes), slot, data.clone())
                })
                .collect();
            let mut errors = 0;
            for result in peristyle_rt::join_all(commands).await {
                errors += u64::from(!result?);
            }
            if n >= WARMUP {
                seen.errors += errors;
                seen.last_us.push(peristyle_rt::now().nanos_since(began) as f64 / 1000.0);
            }
        }
        queue.close();
        Ok(seen)
    }

    async fn data(&self, random: &mut Random) -> View {
        let mut data = Buf::alloc(self.block_bytes as usize).await;
        Contents::Random.fill(random, &mut data);
        data.freeze()
    }
}

/// One command; whether it was done. The buffer is back in its slot afterwards.
async fn one(
    queue: &Queue,
    namespace: Namespace,
    (read, offset, bytes): (bool, u64, u32),
    slot: &mut Option<Buf>,
    data: View,
) -> Result<bool, HostError> {
    if !read {
        let answer = queue.command(namespace.write(offset, bytes), Payload::ToTarget(data)).await?;
        return Ok(answer.status().is_success());
    }
    let buf = slot.take().expect("each slot has one command");
    let answer = queue.command(namespace.read(offset, bytes), Payload::FromTarget(buf)).await?;
    let is_done = answer.status().is_success();
    *slot = answer.data;
    Ok(is_done)
}
