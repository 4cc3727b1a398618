//! What of the map is not in memory is read when somebody needs it, once, whoever asks; and what layers have lost is
//! looked through, so that the counts of live blocks follow.

use crate::columns::Columns;
use crate::error::ShardError;
use crate::map::{Away, FANOUT, Left, Missing, PAGE_BLOCKS, Ptr};
use crate::shard::{Shard, State};
use peristyle_base::LayerId;
use peristyle_cluster::ShardStore;
use peristyle_rt::sync::Notify;
use peristyle_rt::{Buf, Duration, View, timeout};
use std::cell::RefCell;
use std::rc::Rc;

/// Pause before something of the map that could not be read, or had no room, is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// Map blocks that are read at the same time.
const READS_MAX: usize = 64;

/// Map blocks that are being read.
pub(crate) struct Bringing {
    reading: RefCell<Vec<Ptr>>,
    /// Those of which the last read failed, until it is tried again.
    failed: RefCell<Vec<(Ptr, ShardError)>>,
    done: Notify,
}

impl Default for Bringing {
    fn default() -> Bringing {
        let (reading, failed) = (Vec::with_capacity(READS_MAX), Vec::with_capacity(READS_MAX));
        Bringing { reading: RefCell::new(reading), failed: RefCell::new(failed), done: Notify::default() }
    }
}

impl Bringing {
    /// True for whoever has to read it.
    fn start(&self, home: Ptr) -> bool {
        let mut reading = self.reading.borrow_mut();
        let first = !reading.contains(&home) && reading.len() < READS_MAX;
        if first {
            reading.push(home);
            self.failed.borrow_mut().retain(|failed| failed.0 != home);
        }
        first
    }

    fn end(&self, home: Ptr, result: Result<(), ShardError>) {
        self.reading.borrow_mut().retain(|ptr| *ptr != home);
        if let Err(error) = result {
            let mut failed = self.failed.borrow_mut();
            if failed.len() == READS_MAX {
                failed.remove(0);
            }
            failed.push((home, error));
        }
        self.done.notify_all();
    }

    fn failure(&self, home: Ptr) -> Option<ShardError> {
        self.failed.borrow().iter().find(|failed| failed.0 == home).map(|failed| failed.1)
    }
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Has a leaf in memory, if there is any block of it. It may go again at the next await.
    pub(crate) async fn bring(self: &Rc<Self>, away: Away) -> Result<(), ShardError> {
        self.bring_all(away, false).await
    }

    /// As [`bring`](Self::bring), of its page.
    pub(crate) async fn bring_page(self: &Rc<Self>, away: Away) -> Result<(), ShardError> {
        self.bring_all(away, true).await
    }

    /// What a range that is about to read as zeros does not cover as a whole at its ends. That it is in memory makes
    /// the commit cheap; it does without.
    pub(crate) async fn bring_edges(
        self: &Rc<Self>,
        layer: LayerId,
        block: u64,
        count: u64,
    ) -> Result<(), ShardError> {
        let end = block.saturating_add(count);
        let blocks = self.state.borrow().map.layer_blocks(layer).unwrap_or(0);
        // The end of a layer is the end of its last leaf and page as well.
        let last = (end < blocks).then_some((end, end - 1));
        for (edge, inside) in [Some((block, block)), last].into_iter().flatten() {
            if edge % FANOUT as u64 != 0 {
                self.bring(Away::of(layer, inside)).await?;
            } else if edge % PAGE_BLOCKS != 0 {
                self.bring_page(Away::of(layer, inside)).await?;
            }
        }
        Ok(())
    }

    async fn bring_all(self: &Rc<Self>, away: Away, page_only: bool) -> Result<(), ShardError> {
        let mut asked = None;
        loop {
            let missing = {
                let state = self.state.borrow();
                if state.stopped.is_some() {
                    return Err(ShardError::Stopped);
                }
                if page_only { state.map.missing_page(away) } else { state.map.missing(away) }
            };
            let home = match missing {
                Missing::Nothing => return Ok(()),
                Missing::Page(home) | Missing::Leaf(home) => home,
            };
            if asked == Some(home)
                && let Some(error) = self.bringing.failure(home)
            {
                return Err(error);
            }
            asked = Some(home);
            // In a task of its own, whose memory is used again: who waits for it may give up, others wait as well.
            if self.bringing.start(home) {
                peristyle_rt::spawn(self.clone().bring_block(away, missing, home));
            }
            self.bringing.done.notified().await;
        }
    }

    async fn bring_block(self: Rc<Self>, away: Away, missing: Missing, home: Ptr) {
        let read = self.read_home(home).await;
        let result = match read {
            Err(error) => Err(error),
            Ok(bytes) => {
                let fits = {
                    let State { map, extents, stats, .. } = &mut *self.state.borrow_mut();
                    stats.map_reads += 1;
                    match missing {
                        Missing::Page(_) => map.install_page(away, home, &bytes),
                        _ => map.install_leaf(away, home, &bytes, |ptr| extents.drop_live(ptr)),
                    }
                };
                self.tell_of_deaths();
                if !fits {
                    // Everything in memory is being written, or has to be first.
                    self.ask_for_checkpoint();
                    timeout(RETRY, self.progress.notified()).await;
                }
                Ok(())
            }
        };
        self.bringing.end(home, result);
    }

    async fn read_home(self: &Rc<Self>, home: Ptr) -> Result<View, ShardError> {
        let recovering = self.state.borrow().recovering;
        match recovering {
            true => self.read_map_block(home).await.map(Buf::freeze),
            false => self.read_pointer(home).await,
        }
    }

    pub(crate) fn tell_of_deaths(&self) {
        if self.state.borrow().extents.died {
            self.space.notify_all();
        }
    }

    /// Leaves that the next checkpoint should write, because there are too many changes to list.
    pub(crate) async fn bring_crowd(self: &Rc<Self>) {
        let crowd = self.state.borrow().map.crowd();
        for away in crowd {
            // What cannot be read now, or has no room before this checkpoint has made some, stays listed.
            if !self.state.borrow().map.can_take_more() {
                return;
            }
            let _ = self.bring(away).await;
            self.state.borrow_mut().map.rewrite_leaf(away);
        }
    }

    /// For tests and the simulator: nothing of the map is in memory that can be read back.
    pub fn forget_map(&self) {
        self.state.borrow_mut().map.forget_what_can_be_read();
    }

    /// Looks through what layers have lost, one leaf after the other.
    pub(crate) async fn run_remains(self: Rc<Self>) {
        loop {
            let left = {
                let State { map, extents, stopped, .. } = &mut *self.state.borrow_mut();
                if stopped.is_some() {
                    return;
                }
                map.count_remains(|ptr| extents.drop_live(ptr))
            };
            self.tell_of_deaths();
            match left {
                Left::Nothing => {
                    let any = || self.stopped().is_some() || !self.state.borrow().map.all_counted();
                    self.progress.wait_until(any).await;
                }
                Left::More => peristyle_rt::end_of_turn().await,
                Left::Busy => self.progress.notified().await,
                Left::Page(away, _) => {
                    if self.bring_page(away).await.is_err() {
                        peristyle_rt::sleep(RETRY).await;
                    }
                }
                Left::Leaf(away, home) => match self.read_home(home).await {
                    Ok(bytes) => {
                        let State { map, extents, .. } = &mut *self.state.borrow_mut();
                        map.count_leaf(away, home, &bytes, |ptr| extents.drop_live(ptr));
                    }
                    Err(_) => peristyle_rt::sleep(RETRY).await,
                },
            }
        }
    }
}
