//! The shard's two ways out, watched: what it asks of columns and of the control store tells what is under way.

use crate::operation::{Operation, Step, UnderWay};
use peristyle_base::{
    ColumnName, ColumnPlace, DeviceId, Epoch, ExtentId, Instant, RowIndex, Scheme, ShardId, SlotIndex,
};
use peristyle_cluster::{DeviceView, MemoryShardStore, ShardRecord, ShardStore, StoreError, Version};
use peristyle_node::columns::NodeColumns;
use peristyle_rt::{Buf, Duration, IoVec, View};
use peristyle_shard::{AllocClass, ColumnFault, Columns, Fate, ListedSlot, WriteClass};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

/// What is being done, as one process shows it, and how slow its control store is.
#[derive(Clone, Default)]
pub struct Watch {
    pub under_way: UnderWay,
    /// A takeover is over, and what it left to be done is being done.
    pub settling: Rc<Cell<bool>>,
    /// Columns that were sealed, and freed.
    pub sealed: Rc<Cell<u64>>,
    pub freed: Rc<Cell<u64>>,
    /// Columns of extents that hosts wrote to, and that were freed while the shard served.
    pub unused: Rc<Cell<u64>>,
    /// Extents with a sealed column, of all processes.
    pub sealed_extents: Rc<RefCell<BTreeSet<ExtentId>>>,
    /// How long the control store takes before it writes, and before it answers.
    pub half_a_put: Duration,
}

impl Watch {
    fn settle(&self) -> Option<Step> {
        self.settling.get().then(|| self.under_way.begin(Operation::Settle))
    }
}

/// The node's columns.
pub struct WatchedColumns {
    pub columns: NodeColumns,
    pub watch: Watch,
}

impl Columns for WatchedColumns {
    fn pool_scheme(&self) -> Option<Scheme> {
        self.columns.pool_scheme()
    }

    fn devices(&self, class: AllocClass, out: &mut Vec<DeviceView>) {
        self.columns.devices(class, out);
    }

    async fn allocate(
        &self,
        device: DeviceId,
        name: ColumnName,
        scheme: Scheme,
        epoch: Epoch,
        class: AllocClass,
    ) -> Result<SlotIndex, ColumnFault> {
        let _step = self.watch.under_way.begin(Operation::Refill);
        self.columns.allocate(device, name, scheme, epoch, class).await
    }

    async fn allocate_filling(
        &self,
        device: DeviceId,
        name: ColumnName,
        scheme: Scheme,
        epoch: Epoch,
    ) -> Result<SlotIndex, ColumnFault> {
        self.columns.allocate_filling(device, name, scheme, epoch).await
    }

    async fn append(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        epoch: Epoch,
        row: RowIndex,
        data: IoVec,
        crcs: View,
        class: WriteClass,
    ) -> Result<(), ColumnFault> {
        let operation = match class {
            WriteClass::Meta | WriteClass::Repair => None,
            WriteClass::Collection => Some(Operation::Relocate),
            WriteClass::User | WriteClass::Reappend => Some(Operation::Frame),
        };
        let _step = operation.map(|operation| self.watch.under_way.begin(operation));
        self.columns.append(place, name, epoch, row, data, crcs, class).await
    }

    fn try_append(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        epoch: Epoch,
        row: RowIndex,
        data: &IoVec,
        crcs: &[u8],
        class: WriteClass,
        started: Instant,
    ) -> Option<Instant> {
        self.columns.try_append(place, name, epoch, row, data, crcs, class, started)
    }

    async fn fence(&self, place: ColumnPlace, name: ColumnName, epoch: Epoch) -> Result<(), ColumnFault> {
        self.columns.fence(place, name, epoch).await
    }

    async fn read(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        row: RowIndex,
        buf: Buf,
    ) -> (Result<(), ColumnFault>, Buf) {
        self.columns.read(place, name, row, buf).await
    }

    fn try_read(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        row: RowIndex,
        into: &mut [u8],
        started: Instant,
    ) -> Option<Instant> {
        self.columns.try_read(place, name, row, into, started)
    }

    async fn seal(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        epoch: Epoch,
        rows: u16,
        holes: Vec<(u16, u16)>,
        crcs: Vec<u32>,
    ) -> Result<(), ColumnFault> {
        let _steps = (self.watch.under_way.begin(Operation::SealExtent), self.watch.settle());
        let result = self.columns.seal(place, name, epoch, rows, holes, crcs).await;
        self.watch.sealed.set(self.watch.sealed.get() + 1);
        self.watch.sealed_extents.borrow_mut().insert(name.extent);
        result
    }

    async fn free(&self, place: ColumnPlace, name: ColumnName, epoch: Epoch) -> Result<(), ColumnFault> {
        let rebuilding = self.watch.under_way.has(Operation::Rebuild);
        let sealed = self.watch.sealed_extents.borrow().contains(&name.extent);
        let unused = sealed && !self.watch.settling.get() && !rebuilding;
        let operation = if unused { Operation::FreeUnused } else { Operation::GiveBack };
        let _steps = (self.watch.under_way.begin(operation), self.watch.settle());
        let result = self.columns.free(place, name, epoch).await;
        self.watch.freed.set(self.watch.freed.get() + 1);
        self.watch.unused.set(self.watch.unused.get() + u64::from(unused));
        result
    }

    async fn list(&self, shard: ShardId) -> Vec<(DeviceId, Result<Vec<ListedSlot>, ColumnFault>)> {
        self.columns.list(shard).await
    }

    async fn list_device(&self, device: DeviceId, shard: ShardId) -> Result<Vec<ListedSlot>, ColumnFault> {
        self.columns.list_device(device, shard).await
    }

    async fn row_crcs(&self, place: ColumnPlace, name: ColumnName) -> Result<Vec<u32>, ColumnFault> {
        self.columns.row_crcs(place, name).await
    }

    fn fates(&self, out: &mut Vec<(DeviceId, Fate)>) {
        self.columns.fates(out);
    }

    fn report_bad(&self, device: DeviceId, fault: Option<ColumnFault>) {
        self.columns.report_bad(device, fault);
    }

    fn is_away(&self, device: DeviceId) -> bool {
        self.columns.is_away(device)
    }

    fn report_late(&self, device: DeviceId) {
        self.columns.report_late(device);
    }

    fn append_p99_ns(&self, device: DeviceId) -> u64 {
        self.columns.append_p99_ns(device)
    }
}

/// A control store that takes its time before it writes, and before it answers.
pub struct WatchedStore {
    pub store: MemoryShardStore,
    pub watch: Watch,
}

impl ShardStore for WatchedStore {
    async fn load(&self, shard: ShardId) -> Result<Option<(ShardRecord, Version)>, StoreError> {
        peristyle_rt::sleep(self.watch.half_a_put).await;
        self.store.load(shard).await
    }

    async fn put(
        &self,
        shard: ShardId,
        expected: Version,
        record: &ShardRecord,
    ) -> Result<Version, StoreError> {
        let before = self.store.peek(shard).map(|(before, _)| before.open_set).unwrap_or_default();
        let lists = |set: &[peristyle_cluster::OpenExtent], id| set.iter().any(|e| e.extent == id);
        let more = record.open_set.iter().any(|e| !lists(&before, e.extent));
        let less = before.iter().any(|e| !lists(&record.open_set, e.extent));
        let _steps = (
            more.then(|| self.watch.under_way.begin(Operation::Refill)),
            less.then(|| self.watch.under_way.begin(Operation::GiveBack)),
        );
        peristyle_rt::sleep(self.watch.half_a_put).await;
        let answer = self.store.put(shard, expected, record).await;
        peristyle_rt::sleep(self.watch.half_a_put).await;
        answer
    }
}
