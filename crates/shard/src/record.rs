//! The shard's record in the control store: written off the I/O path, whatever the store does.

use crate::columns::Columns;
use crate::error::StopReason;
use crate::extent::{Extent, ExtentPhase};
use crate::shard::{Shard, State};
use peristyle_base::ExtentId;
use peristyle_cluster::{ExtentState, OPEN_EXTENTS_MAX, OpenExtent, ShardRecord, ShardStore, StoreError};
use peristyle_rt::Duration;

/// Pause before a store that is out of reach is asked again.
const RETRY_PERIOD: Duration = Duration::from_millis(100);
/// Extent numbers that one write of the record reserves.
pub(crate) const EXTENTS_RESERVED: u64 = 64;

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Writes the shard's record: the open set as it stands, what `change` adds, and the committed number.
    /// One writer at a time; a conflict means that somebody else owns the shard.
    pub(crate) async fn write_record(&self, change: impl FnOnce(&mut ShardRecord)) -> Result<(), StopReason> {
        let _turn = self.record_turn.acquire(1).await;
        let (record, mut version) = {
            let state = &mut *self.state.borrow_mut();
            if let Some(reason) = state.stopped {
                return Err(reason);
            }
            let mut record = state.record.clone();
            record.committed = state.committed;
            record.open_set = open_set(state);
            record.next_extent = ExtentId(state.next_extent.0 + EXTENTS_RESERVED);
            change(&mut record);
            (record, state.version)
        };
        let listed: Vec<ExtentId> = record.open_set.iter().map(|e| e.extent).collect();
        loop {
            match self.store.put(self.id, version, &record).await {
                Ok(written) => {
                    self.record_written(record, written, &listed);
                    return Ok(());
                }
                Err(StoreError::Unknown) => match self.store.load(self.id).await {
                    // It did happen: what is stored is what we wrote.
                    Ok(Some((stored, now))) if stored == record => {
                        self.record_written(stored, now, &listed);
                        return Ok(());
                    }
                    // Not yet, or an earlier one: nobody else writes under this epoch.
                    Ok(Some((stored, now))) if stored.epoch == record.epoch => version = now,
                    Ok(_) => break,
                    Err(_) => self.store_is_away().await,
                },
                Err(StoreError::Unavailable) => self.store_is_away().await,
                // An earlier put of ours that was given up for lost may have arrived late: nobody else writes
                // under this epoch.
                Err(StoreError::Conflict) => match self.store.load(self.id).await {
                    Ok(Some((stored, now))) if stored.epoch == record.epoch => version = now,
                    Ok(_) => break,
                    Err(_) => self.store_is_away().await,
                },
                Err(StoreError::TooLarge | StoreError::Damaged) => break,
            }
            if let Some(reason) = self.stopped() {
                return Err(reason);
            }
        }
        self.stop(StopReason::Fenced);
        Err(StopReason::Fenced)
    }

    /// The record is written once the store is back. Until then frames take what is left, of whichever width.
    async fn store_is_away(&self) {
        self.state.borrow_mut().store_away = true;
        self.supplied.notify_all();
        peristyle_rt::sleep(RETRY_PERIOD).await;
    }

    fn record_written(&self, record: ShardRecord, version: peristyle_cluster::Version, listed: &[ExtentId]) {
        let state = &mut *self.state.borrow_mut();
        state.record = record;
        state.version = version;
        state.store_away = false;
        for extent in state.extents.iter_mut() {
            extent.in_record = listed.contains(&extent.id);
        }
    }
}

/// The open and ready extents of this epoch, by number.
fn open_set(state: &State) -> Vec<OpenExtent> {
    let epoch = state.record.epoch;
    let live = |e: &&Extent| {
        let mine = e.epoch == epoch
            && matches!(
                e.phase,
                ExtentPhase::Ready | ExtentPhase::Open | ExtentPhase::Closed | ExtentPhase::Sealing
            );
        // What the former owner had open stays listed until this one has decided and re-appended the tail.
        mine || (state.recovering && e.phase == ExtentPhase::Old && e.in_record && !e.leftover)
    };
    let mut set: Vec<OpenExtent> = state
        .extents
        .iter()
        .filter(live)
        .map(|e| OpenExtent {
            extent: e.id,
            scheme: e.scheme,
            nonce: e.nonce,
            epoch: e.epoch,
            state: if e.phase == ExtentPhase::Ready { ExtentState::Ready } else { ExtentState::Open },
            columns: e.places,
        })
        .collect();
    // Those that take frames come first: a backlog of seals must not push them out.
    let appended = |e: &OpenExtent| {
        state.extents.get(e.extent).is_some_and(|x| matches!(x.phase, ExtentPhase::Ready | ExtentPhase::Open))
    };
    set.sort_unstable_by_key(|e| (!appended(e), e.extent));
    set.truncate(OPEN_EXTENTS_MAX);
    set.sort_unstable_by_key(|e| e.extent);
    set
}
