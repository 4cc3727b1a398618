//! A device of a few slots on a simulated disk, and short words for what tests do with it.
#![allow(dead_code)] // Each test file uses its part.

use peristyle_base::{
    BLOCK_BYTES, ColumnIndex, ColumnName, DeviceId, Epoch, ExtentId, Nonce, RowIndex, Scheme, ShardId,
    SlotIndex, Uuid, crc32c,
};
use peristyle_column::{
    AllocClass, Allocate, ColumnError, FormatOptions, Geometry, Server, ServerConfig, WriteClass,
};
use peristyle_rt::sim::{self, DiskConfig, DiskHandle, Env};
use peristyle_rt::{Buf, Device, Duration, IoVec};
use std::future::Future;

pub const CLUSTER: Uuid = Uuid([0xc1; 16]);
pub const DEVICE: DeviceId = Uuid([0xde; 16]);
/// A few slots that were freed are zeroed or discarded by then.
pub const AT_LEISURE: Duration = Duration::from_secs(3);
pub const E1: Epoch = Epoch(1);
pub const E2: Epoch = Epoch(2);

pub fn name(extent: u64) -> ColumnName {
    ColumnName {
        shard: ShardId(7),
        extent: ExtentId(extent),
        column: ColumnIndex((extent % 3) as u8),
        nonce: Nonce([extent as u8; 16]),
    }
}

pub fn scheme() -> Scheme {
    Scheme::new(2, 1).unwrap()
}

pub fn wish(extent: u64) -> Allocate {
    Allocate { name: name(extent), scheme: scheme(), epoch: E1, class: AllocClass::User, filling: false }
}

/// A row whose every byte says `tag`, and its checksum.
pub fn crc_of(tag: u8) -> u32 {
    crc32c(&[tag; BLOCK_BYTES])
}

pub async fn rows(tags: &[u8]) -> IoVec {
    let mut iov = IoVec::new();
    for &tag in tags {
        let mut block = Buf::alloc(BLOCK_BYTES).await;
        block.fill(tag);
        iov.push(block.freeze());
    }
    iov
}

/// A formatted device, served; the disk behind it in the test's hand.
pub struct Bed {
    pub env: Env,
    pub disk: DiskHandle,
    pub server: Option<Server>,
    pub config: ServerConfig,
}

pub const OPTIONS: FormatOptions = FormatOptions { cluster: CLUSTER, device: DEVICE, force: false };

impl Bed {
    pub async fn new(env: Env, slots: u32) -> Bed {
        Bed::with(env, slots, ServerConfig::default()).await
    }
    pub async fn with(env: Env, slots: u32, config: ServerConfig) -> Bed {
        Bed::on(env, slots, config, DiskConfig::default()).await
    }
    pub async fn on(env: Env, slots: u32, config: ServerConfig, disk: DiskConfig) -> Bed {
        // A node keeps its disks: another number of slots gets another disk.
        let disk = env.node.add_disk(&format!("d{slots}"), Geometry::bytes_for(slots), disk);
        peristyle_column::format(&Device::open(&disk.spec()).await.unwrap(), OPTIONS).await.unwrap();
        let mut bed = Bed { env, disk, server: None, config };
        bed.restart().await;
        bed
    }
    /// The process ends and comes back.
    pub async fn restart(&mut self) {
        self.server = None;
        let device = Device::open(&self.disk.spec()).await.unwrap();
        self.server = Some(Server::open(device, CLUSTER, self.config).await.unwrap());
    }
    pub fn s(&self) -> &Server {
        self.server.as_ref().unwrap()
    }
    pub fn geometry(&self) -> Geometry {
        self.s().label().geometry
    }
    pub async fn open(&self, extent: u64) -> SlotIndex {
        self.s().allocate(wish(extent)).await.unwrap()
    }
    pub async fn append_at(
        &self,
        slot: SlotIndex,
        extent: u64,
        epoch: Epoch,
        row: u16,
        tags: &[u8],
    ) -> Result<(), ColumnError> {
        append(self.s(), slot, extent, epoch, row, tags).await
    }
    pub async fn append(&self, slot: SlotIndex, extent: u64, row: u16, tags: &[u8]) {
        self.append_at(slot, extent, E1, row, tags).await.unwrap();
    }
    pub async fn read(
        &self,
        slot: SlotIndex,
        extent: u64,
        row: u16,
        count: usize,
    ) -> Result<Vec<u8>, ColumnError> {
        let buf = Buf::alloc(count * BLOCK_BYTES).await;
        let (answer, buf) = self.s().read(slot, &name(extent), RowIndex(row), buf).await;
        answer.map(|()| tags_of(&buf))
    }
    pub async fn read_verified(
        &self,
        slot: SlotIndex,
        extent: u64,
        row: u16,
        count: usize,
    ) -> Result<Vec<u8>, ColumnError> {
        let buf = Buf::alloc(count * BLOCK_BYTES).await;
        let (answer, buf) = self.s().read_verified(slot, &name(extent), RowIndex(row), buf).await;
        answer.map(|()| tags_of(&buf))
    }
}

fn tags_of(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(BLOCK_BYTES).map(|row| row[0]).collect()
}

pub async fn append(
    server: &Server,
    slot: SlotIndex,
    extent: u64,
    epoch: Epoch,
    row: u16,
    tags: &[u8],
) -> Result<(), ColumnError> {
    let crcs: Vec<u32> = tags.iter().map(|&tag| crc_of(tag)).collect();
    let data = rows(tags).await;
    server.append(slot, &name(extent), epoch, RowIndex(row), data, &crcs, WriteClass::User).await
}

/// Runs a test's body in a simulated process.
pub fn test<F, Fut>(body: F)
where
    F: FnOnce(Env) -> Fut,
    Fut: Future<Output = ()> + 'static,
{
    sim::run(1, body)
}
