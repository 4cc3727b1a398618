//! How the shard reaches columns. The node implements this for its own devices, for devices of other reactors
//! and for those of other nodes; the shard cannot tell which.

use peristyle_base::{
    ColumnName, ColumnPlace, DeviceId, Epoch, Instant, NodeId, RowIndex, Scheme, ShardId, SlotIndex,
};
use peristyle_cluster::DeviceView;
pub use peristyle_cluster::{AllocClass, ColumnFault, ListedSlot, SlotState, WriteClass};
use peristyle_rt::{Buf, Duration, IoVec, View};

/// Whether a device's columns are still its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It serves, or stalls for a moment.
    Here,
    /// It serves, and its columns are to move off it.
    Draining,
    /// It serves, and is about to be away for a while: it gets no new columns, and those that it has stay.
    Leaving,
    /// It is not there, and may come back.
    Away,
    /// The operator gave it up, or it has been away for too long: its columns are made anew elsewhere.
    Lost,
}

impl Fate {
    /// Its columns can be asked for.
    pub fn serves(self) -> bool {
        matches!(self, Fate::Here | Fate::Draining | Fate::Leaving)
    }
}

/// Rows that a column does not have although it is longer: `(first, count)`, ascending.
pub type Holes<'a> = &'a [(u16, u16)];

/// After so long every owner of a shard has heard how full devices of other nodes are.
pub const SEEN_AFTER: Duration = Duration::from_millis(250);

/// Access to the columns of one pool. Every request names what it expects to find (DESIGN §6).
pub trait Columns: 'static {
    /// Devices of the pool with their use, as far as `class` may go, and their health, for placement.
    fn devices(&self, class: AllocClass, out: &mut Vec<DeviceView>);

    /// The scheme that the pool has now; `None`: that of the shard's configuration.
    fn pool_scheme(&self) -> Option<Scheme> {
        None
    }

    /// Takes a free slot; durable when it returns. Idempotent by name.
    fn allocate(
        &self,
        device: DeviceId,
        name: ColumnName,
        scheme: Scheme,
        epoch: Epoch,
        class: AllocClass,
    ) -> impl Future<Output = Result<SlotIndex, ColumnFault>>;

    /// As [`allocate`](Self::allocate), for a column that is made anew: nobody reads it before it is sealed, and the device
    /// may still have its old self.
    fn allocate_filling(
        &self,
        device: DeviceId,
        name: ColumnName,
        scheme: Scheme,
        epoch: Epoch,
    ) -> impl Future<Output = Result<SlotIndex, ColumnFault>>;

    /// Writes whole rows from `row` on; durable when it returns. `crcs` holds one little-endian CRC32C per row.
    #[allow(clippy::too_many_arguments)] // Each names one thing that is compared (DESIGN §6).
    fn append(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        epoch: Epoch,
        row: RowIndex,
        data: IoVec,
        crcs: View,
        class: WriteClass,
    ) -> impl Future<Output = Result<(), ColumnFault>>;

    /// As [`append`](Self::append), begun at `started`, where nothing has to be waited for: says when it was done. `None`,
    /// and nothing was written or counted: it has to be waited for, or something is wrong, which `append` will tell.
    #[allow(clippy::too_many_arguments)] // As `append`.
    fn try_append(
        &self,
        _place: ColumnPlace,
        _name: ColumnName,
        _epoch: Epoch,
        _row: RowIndex,
        _data: &IoVec,
        _crcs: &[u8],
        _class: WriteClass,
        _started: Instant,
    ) -> Option<Instant> {
        None
    }

    /// Refuses lower epochs from now on, restarts included; no append is in flight when it returns.
    fn fence(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        epoch: Epoch,
    ) -> impl Future<Output = Result<(), ColumnFault>>;

    /// Fills `buf` with whole rows from `row` on. Nothing is verified: the shard has the checksums.
    fn read(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        row: RowIndex,
        buf: Buf,
    ) -> impl Future<Output = (Result<(), ColumnFault>, Buf)>;

    /// As [`read`](Self::read), begun at `started`, where nothing has to be waited for: says when it was done. `None`, and
    /// nothing was counted: it has to be waited for, or something is wrong, which `read` will tell.
    fn try_read(
        &self,
        _place: ColumnPlace,
        _name: ColumnName,
        _row: RowIndex,
        _into: &mut [u8],
        _started: Instant,
    ) -> Option<Instant> {
        None
    }

    /// The checksums that a sealed column keeps, one for each of its rows.
    fn row_crcs(
        &self,
        place: ColumnPlace,
        name: ColumnName,
    ) -> impl Future<Output = Result<Vec<u32>, ColumnFault>>;

    /// Makes the column immutable at `rows`, its holes zero. `crcs`: one per row, little-endian; empty means
    /// those that the column server remembers from the appends of this epoch.
    fn seal(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        epoch: Epoch,
        rows: u16,
        holes: Vec<(u16, u16)>,
        crcs: Vec<u32>,
    ) -> impl Future<Output = Result<(), ColumnFault>>;

    /// Gives the slot back. Idempotent.
    fn free(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        epoch: Epoch,
    ) -> impl Future<Output = Result<(), ColumnFault>>;

    /// Slots of the shard, device by device; a device that cannot be asked is listed with its error.
    fn list(
        &self,
        shard: ShardId,
    ) -> impl Future<Output = Vec<(DeviceId, Result<Vec<ListedSlot>, ColumnFault>)>>;

    /// As [`list`](Self::list), of one device that came back.
    fn list_device(
        &self,
        device: DeviceId,
        shard: ShardId,
    ) -> impl Future<Output = Result<Vec<ListedSlot>, ColumnFault>>;

    /// What becomes of each device of the pool. One that is not named is gone for good.
    fn fates(&self, out: &mut Vec<(DeviceId, Fate)>);

    /// The shard's epoch has been raised in the control store: returns true when a majority of the cluster's nodes has taken this node
    /// for its owner, and the lease holds; false when that does not come about. At once where nobody else could own it.
    fn claim(&self, _shard: ShardId, _epoch: Epoch) -> impl Future<Output = bool> {
        async { true }
    }

    /// Whether another node answers, as far as is known.
    fn answers(&self, _node: NodeId) -> bool {
        false
    }

    /// Shards, this one included, whose owners see each other's use of the devices only after [`SEEN_AFTER`]: those of other
    /// nodes. 1: nobody else uses them, or it is seen at once.
    fn sharers(&self) -> usize {
        1
    }

    /// What is done to the devices' use, by this owner as well, is seen only after [`SEEN_AFTER`].
    fn sees_late(&self) -> bool {
        self.sharers() > 1
    }

    /// Placement should avoid the device for a while: it failed or stalled.
    fn report_bad(&self, device: DeviceId, fault: Option<ColumnFault>);

    /// The device failed, stalled or is not there, and has not answered since: nobody should wait for it.
    fn is_away(&self, _device: DeviceId) -> bool {
        false
    }

    /// A read takes longer than is usual for the device: it should be found out whether it still answers.
    fn report_late(&self, _device: DeviceId) {}

    /// p99 of recent append latency on the device, in nanoseconds; 0 when unknown.
    fn append_p99_ns(&self, device: DeviceId) -> u64;
}
