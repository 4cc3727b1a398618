//! What a disk may hold after a crash: for each sector that a write was about to change, the old bytes or those
//! of any write that had not become stable. All such states, or a bounded choice of the telling ones.

use super::image::{Image, Page, SECTORS_PER_PAGE, is_same, mix, sector_of};
use super::rng::Rng;
use std::collections::BTreeSet;

/// One sector that is undecided, and what it may hold: `versions[0]` is what is stable already.
#[derive(Clone)]
struct Undecided {
    disk: usize,
    page: u64,
    sector: usize,
    versions: Vec<(Page, u64)>,
}

/// Every state that one or several disks may be in after a crash at this moment.
#[derive(Clone, Default)]
pub struct CrashSpace {
    bases: Vec<Image>,
    sectors: Vec<Undecided>,
    /// Undecided writes (disk, number within the disk), in order of submission.
    writes: Vec<(usize, u64)>,
}

/// Images of the disks, in the order in which the disks were given.
pub type CrashState = Vec<Image>;

fn fingerprint(choice: &[u8]) -> u64 {
    let (words, rest) = choice.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    words.chain(rest.iter().map(|byte| u64::from(*byte))).fold(choice.len() as u64, mix)
}

impl CrashSpace {
    /// Adds a disk: its stable contents, and per page what unstable writes would leave there, oldest first.
    pub(crate) fn add_disk(&mut self, base: Image, pages: &[(u64, Vec<(Page, u64)>)]) {
        let disk = self.bases.len();
        for (page, versions) in pages {
            if versions.iter().all(|(version, _)| is_same(version, base.page(*page))) {
                continue;
            }
            for sector in 0..SECTORS_PER_PAGE {
                let mut distinct: Vec<(Page, u64)> = vec![(base.page(*page).clone(), 0)];
                for (version, write) in versions {
                    let bytes = sector_of(version, sector);
                    if distinct.iter().all(|(seen, _)| sector_of(seen, sector) != bytes) {
                        distinct.push((version.clone(), *write));
                    }
                }
                if distinct.len() > 1 {
                    self.writes.extend(distinct[1..].iter().map(|(_, write)| (disk, *write)));
                    self.sectors.push(Undecided { disk, page: *page, sector, versions: distinct });
                }
            }
        }
        self.writes.sort_unstable_by_key(|&(disk, write)| (write, disk));
        self.writes.dedup();
        self.bases.push(base);
    }

    /// Number of different states (saturating).
    pub fn count(&self) -> u128 {
        self.sectors.iter().fold(1u128, |n, s| n.saturating_mul(s.versions.len() as u128))
    }

    /// Number of writes whose fate is open.
    pub fn undecided_writes(&self) -> usize {
        self.writes.len()
    }

    fn build(&self, choice: &[u8]) -> CrashState {
        let mut images = self.bases.clone();
        for (sector, &chosen) in self.sectors.iter().zip(choice) {
            if chosen > 0 {
                let version = &sector.versions[chosen as usize].0;
                images[sector.disk].set_sector(sector.page, sector.sector, version);
            }
        }
        images
    }

    /// Each sector gets the newest version that `keep` lets through.
    fn choose(&self, mut keep: impl FnMut(&Undecided, usize, u64) -> bool) -> Vec<u8> {
        let newest = |(index, s): (usize, &Undecided)| {
            (1..s.versions.len()).rev().find(|&v| keep(s, index, s.versions[v].1)).unwrap_or(0) as u8
        };
        self.sectors.iter().enumerate().map(newest).collect()
    }

    /// Draws one state: nothing kept, everything kept, whole writes, or sectors, each as likely.
    pub fn draw(&self, rng: &mut Rng) -> CrashState {
        self.build(&self.draw_choice(rng))
    }

    fn draw_choice(&self, rng: &mut Rng) -> Vec<u8> {
        match rng.below(4) {
            0 => vec![0; self.sectors.len()],
            1 => self.choose(|_, _, _| true),
            2 => {
                let kept: BTreeSet<_> = self.writes.iter().copied().filter(|_| rng.coin()).collect();
                self.choose(|s, _, write| kept.contains(&(s.disk, write)))
            }
            _ => self.sectors.iter().map(|s| rng.below(s.versions.len() as u64) as u8).collect(),
        }
    }

    /// Different states, at most `limit`: all of them when they are that few. Otherwise nothing kept, everything
    /// kept, each write alone, all but one, each prefix of the writes with the next one torn at each sector
    /// from both ends, then states drawn from `seed`.
    pub fn states(&self, limit: usize, seed: u64) -> impl Iterator<Item = CrashState> + '_ {
        self.drawn(limit, usize::MAX, seed)
    }

    /// Of those states, `count` that are drawn from the seed.
    pub fn drawn(&self, limit: usize, count: usize, seed: u64) -> impl Iterator<Item = CrashState> + '_ {
        let all = self.count();
        let mut choices = if all <= limit as u128 { self.all(all as usize) } else { self.some(limit, seed) };
        let mut rng = Rng::new(!seed);
        while choices.len() > count {
            choices.swap_remove(rng.below(choices.len() as u64) as usize);
        }
        choices.into_iter().map(|choice| self.build(&choice))
    }

    fn all(&self, count: usize) -> Vec<Vec<u8>> {
        let nth = |mut n: usize| {
            let digit = |s: &Undecided| {
                let digit = n % s.versions.len();
                n /= s.versions.len();
                digit as u8
            };
            self.sectors.iter().map(digit).collect()
        };
        (0..count).map(nth).collect()
    }

    fn some(&self, limit: usize, seed: u64) -> Vec<Vec<u8>> {
        // By their fingerprints: there may be a hundred thousand sectors.
        let mut seen = BTreeSet::new();
        let mut states = Vec::new();
        let mut add = |choice: Vec<u8>| {
            if states.len() < limit && seen.insert(fingerprint(&choice)) {
                states.push(choice);
            }
            states.len() < limit
        };
        add(self.choose(|_, _, _| false));
        add(self.choose(|_, _, _| true));
        for &one in &self.writes {
            let more = add(self.choose(|s, _, write| (s.disk, write) == one))
                && add(self.choose(|s, _, write| (s.disk, write) != one));
            if !more {
                return states;
            }
        }
        for &torn in &self.writes {
            let touched: Vec<usize> = (0..self.sectors.len())
                .filter(|&i| self.sectors[i].disk == torn.0)
                .filter(|&i| self.sectors[i].versions.iter().any(|v| v.1 == torn.1))
                .collect();
            for &cut in &touched {
                for front in [true, false] {
                    let more = add(self.choose(|s, i, write| {
                        (write, s.disk) < (torn.1, torn.0)
                            || (s.disk, write) == torn && if front { i <= cut } else { i >= cut }
                    }));
                    if !more {
                        return states;
                    }
                }
            }
        }
        let mut rng = Rng::new(seed);
        // Draws repeat: a bound on the attempts keeps this finite when nearly all states have been seen.
        for _ in 0..limit * 4 {
            if !add(self.draw_choice(&mut rng)) {
                break;
            }
        }
        states
    }
}
