//! A pool of devices in memory behind the shard's [`Columns`], on which a test can stop, fail or refuse any single
//! request, and take columns away. It compares names and epochs like the column server does.
#![allow(dead_code)] // each test file uses a part of it

mod devices;
mod home;

pub use home::{Home, TestShard};

use peristyle_base::*;
use peristyle_cluster::{DeviceView, DomainId};
use peristyle_rt::{Buf, Duration, IoVec, View};
use peristyle_shard::frame::{Entry, FrameKind, Header};
use peristyle_shard::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

pub const L: LayerId = LayerId(1);
const BLOCK: usize = BLOCK_BYTES;
const SLOTS: u32 = 4096;
pub const KEPT_BACK: u32 = 4;
pub const KEPT_FOR_COLLECTION: u32 = 2;

/// What becomes of one request.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Do {
    /// What was asked.
    It,
    Fail(ColumnFault),
    /// Nothing, for ever.
    Hang,
    /// What was asked, without an answer.
    ItAndHang,
    /// What was asked, so much later.
    Late(Duration),
}

/// One request, as a test's rule sees it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub what: What,
    /// Index of the device.
    pub device: usize,
    pub extent: ExtentId,
    pub column: usize,
    pub row: u16,
    pub rows: u16,
    pub class: Option<WriteClass>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    Allocate,
    Append,
    Fence,
    Read,
    Seal,
    Free,
    /// Its checksums are asked for.
    Table,
    /// A slot for a column that is made anew.
    Fill,
}

struct Column {
    name: ColumnName,
    scheme: Scheme,
    epoch: Epoch,
    /// It is being made anew: never read.
    filling: bool,
    sealed: Option<u16>,
    /// Checksums that came with the seal.
    stated: Vec<u32>,
    /// Those that came with the appends.
    appended: BTreeMap<u16, u32>,
    rows: BTreeMap<u16, Vec<u8>>,
}

struct Device {
    id: DeviceId,
    away: bool,
    fate: Fate,
    domain: u32,
    /// Slots, if fewer than the others have.
    slots: Option<u32>,
    next: u32,
    columns: BTreeMap<u32, Column>,
}

type Rule = Box<dyn FnMut(&Asked) -> Do>;

struct Inner {
    devices: Vec<Device>,
    rule: Rule,
    lie: Box<dyn FnMut(&Asked) -> bool>,
    log: Vec<(Asked, Result<(), ColumnFault>)>,
    full: bool,
    spent: bool,
    slots: u32,
    scheme: Option<Scheme>,
    p99_ns: u64,
    /// What each number of the user sequence names. Checked with every append: it never names two things.
    frames: BTreeMap<(Epoch, Seq), Vec<Entry>>,
}

/// The pool as one process reaches it: nothing of a process that was killed arrives any more.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<RefCell<Inner>>,
    killed: Rc<Cell<bool>>,
}

impl Pool {
    pub fn new(devices: usize) -> Pool {
        let device = |i: usize| Device {
            id: Uuid::from_random([i as u8 + 1; 16]),
            away: false,
            fate: Fate::Here,
            domain: i as u32,
            slots: None,
            next: 0,
            columns: BTreeMap::new(),
        };
        let devices = (0..devices).map(device).collect();
        let inner = Inner {
            devices,
            rule: Box::new(|_| Do::It),
            lie: Box::new(|_| false),
            log: Vec::new(),
            full: false,
            spent: false,
            slots: SLOTS,
            scheme: None,
            p99_ns: 0,
            frames: BTreeMap::new(),
        };
        Pool { inner: Rc::new(RefCell::new(inner)), killed: Rc::default() }
    }
    fn of_a_process(&self) -> Pool {
        Pool { inner: self.inner.clone(), killed: Rc::default() }
    }
    /// From now on each request is decided by `rule`.
    pub fn rule(&self, rule: impl FnMut(&Asked) -> Do + 'static) {
        self.inner.borrow_mut().rule = Box::new(rule);
    }
    pub fn no_rule(&self) {
        self.rule(|_| Do::It);
    }
    pub fn away(&self, device: usize, away: bool) {
        self.fate(device, if away { Fate::Away } else { Fate::Here });
    }
    /// Users' extents find no room from now on.
    pub fn full(&self, full: bool) {
        self.inner.borrow_mut().full = full;
    }
    /// So many slots on each device from now on, some of them kept back from users' extents.
    pub fn slots(&self, slots: u32) {
        self.inner.borrow_mut().slots = slots;
    }
    /// Nobody's extents find room, also not in what is kept back.
    pub fn full_to_the_last(&self, spent: bool) {
        self.inner.borrow_mut().spent = spent;
    }
    /// Requests that were answered since this was asked last.
    pub fn take_log(&self) -> Vec<(Asked, Result<(), ColumnFault>)> {
        std::mem::take(&mut self.inner.borrow_mut().log)
    }
    /// Columns of an extent that are there: column index, rows at which it was sealed.
    pub fn columns_of(&self, extent: ExtentId) -> BTreeMap<usize, Option<u16>> {
        let inner = self.inner.borrow();
        let all = inner.devices.iter().flat_map(|d| d.columns.values());
        all.filter(|c| c.name.extent == extent).map(|c| (c.name.column.0 as usize, c.sealed)).collect()
    }
    pub fn extents(&self) -> Vec<ExtentId> {
        let inner = self.inner.borrow();
        let all = inner.devices.iter().flat_map(|d| d.columns.values());
        let mut ids: Vec<_> = all.map(|c| c.name.extent).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
    /// The checksums that a seal stated, each with that of what the column holds.
    pub fn stated(&self, extent: ExtentId, column: usize) -> Vec<(u32, u32)> {
        let inner = self.inner.borrow();
        let mut all = inner.devices.iter().flat_map(|d| d.columns.values());
        let column = all.find(|c| c.name.extent == extent && c.name.column.0 as usize == column);
        let column = column.expect("it is there");
        let holds = |row: usize| crc32c(&column.rows[&(row as u16)]);
        column.stated.iter().enumerate().map(|(row, &crc)| (crc, holds(row))).collect()
    }
    /// The column is gone, its slot as well: as if it had been given back.
    pub fn lose_column(&self, extent: ExtentId, column: usize) {
        for device in &mut self.inner.borrow_mut().devices {
            device.columns.retain(|_, c| !(c.name.extent == extent && c.name.column.0 as usize == column));
        }
    }
    /// Another device has the column as well, or something like it.
    pub fn copy_column(
        &self,
        extent: ExtentId,
        column: usize,
        to: usize,
        change: impl Fn(&mut ColumnName, &mut Option<u16>),
    ) {
        let inner = &mut *self.inner.borrow_mut();
        let is_it = |c: &&Column| c.name.extent == extent && c.name.column.0 as usize == column;
        let there = inner.devices.iter().flat_map(|d| d.columns.values()).find(is_it).expect("it is there");
        let (mut name, mut sealed) = (there.name, there.sealed);
        change(&mut name, &mut sealed);
        let (scheme, epoch, rows) = (there.scheme, there.epoch, there.rows.clone());
        let (appended, stated, filling) = (there.appended.clone(), Vec::new(), false);
        let device = &mut inner.devices[to];
        let copy = Column { name, scheme, epoch, filling, sealed, stated, appended, rows };
        device.columns.insert(device.next, copy);
        device.next += 1;
    }
    /// As [`copy_column`](Self::copy_column), and it is not where it was any more.
    pub fn move_column(
        &self,
        extent: ExtentId,
        column: usize,
        to: usize,
        change: impl Fn(&mut ColumnName, &mut Option<u16>),
    ) {
        let from = self.device_of(extent, column);
        self.copy_column(extent, column, to, change);
        let is_it = |c: &Column| c.name.extent == extent && c.name.column.0 as usize == column;
        self.inner.borrow_mut().devices[from].columns.retain(|_, c| !is_it(c));
    }
    /// The device that has the column.
    pub fn device_of(&self, extent: ExtentId, column: usize) -> usize {
        let inner = self.inner.borrow();
        let is_it = |c: &Column| c.name.extent == extent && c.name.column.0 as usize == column;
        inner.devices.iter().position(|d| d.columns.values().any(is_it)).expect("it is there")
    }
    pub fn index_of(&self, id: DeviceId) -> Option<usize> {
        self.inner.borrow().devices.iter().position(|d| d.id == id)
    }
    /// Changes what a device has of a row.
    pub fn change_row(&self, extent: ExtentId, column: usize, row: u16, change: impl Fn(&mut [u8])) {
        for device in &mut self.inner.borrow_mut().devices {
            for c in device.columns.values_mut() {
                if c.name.extent == extent && c.name.column.0 as usize == column {
                    change(c.rows.entry(row).or_insert_with(|| vec![0; BLOCK]));
                }
            }
        }
    }
    /// The header that a column has at a row, and its entries.
    pub fn header(&self, extent: ExtentId, column: usize, row: u16) -> Option<(Header, Vec<Entry>)> {
        let block = self.row(extent, column, row)?;
        let (nonce, mut entries) = (Nonce(block[16..32].try_into().unwrap()), Vec::new());
        Header::decode(&block, &nonce, &mut entries).ok().map(|header| (header, entries))
    }
    pub fn row(&self, extent: ExtentId, column: usize, row: u16) -> Option<Vec<u8>> {
        let inner = self.inner.borrow();
        let all = inner.devices.iter().flat_map(|d| d.columns.values());
        let mut column = all.filter(|c| c.name.extent == extent && c.name.column.0 as usize == column);
        column.next()?.rows.get(&row).cloned()
    }

    async fn ask(
        &self,
        asked: Asked,
        act: impl FnOnce(&mut Inner) -> Result<(), ColumnFault>,
    ) -> Result<(), ColumnFault> {
        // Never at once: a device takes its time, and others may ask meanwhile.
        peristyle_rt::sleep(Duration::from_micros(20)).await;
        if self.killed.get() {
            return std::future::pending().await;
        }
        let order = match self.inner.borrow().devices[asked.device].away {
            true => Do::Fail(ColumnFault::Device),
            false => Do::It,
        };
        let order = match order {
            Do::It => (self.inner.borrow_mut().rule)(&asked),
            other => other,
        };
        let done = |order| {
            let inner = &mut *self.inner.borrow_mut();
            let result = match order {
                Do::Fail(fault) => Err(fault),
                _ => act(inner),
            };
            inner.log.push((asked, result));
            result
        };
        match order {
            Do::It | Do::Fail(_) => done(order),
            Do::Late(by) => {
                peristyle_rt::sleep(by).await;
                if self.killed.get() {
                    return std::future::pending().await;
                }
                done(order)
            }
            Do::ItAndHang => {
                let _ = done(order);
                std::future::pending().await
            }
            Do::Hang => std::future::pending().await,
        }
    }
}

impl Inner {
    fn listed(&self, index: usize) -> Result<Vec<ListedSlot>, ColumnFault> {
        let device = &self.devices[index];
        let slot = |(&slot, c): (&u32, &Column)| ListedSlot {
            place: ColumnPlace { device: device.id, slot: SlotIndex(slot) },
            name: c.name,
            scheme: c.scheme,
            state: match c.sealed {
                Some(_) => SlotState::Sealed,
                None if c.filling => SlotState::Filling,
                None => SlotState::Open,
            },
            epoch: c.epoch,
            rows: c.sealed.unwrap_or(0),
        };
        if device.away { Err(ColumnFault::Device) } else { Ok(device.columns.iter().map(slot).collect()) }
    }
    fn allocate(
        &mut self,
        index: usize,
        name: ColumnName,
        scheme: Scheme,
        epoch: Epoch,
        filling: bool,
    ) -> SlotIndex {
        let device = &mut self.devices[index];
        let slot = SlotIndex(device.next);
        device.next += 1;
        let (stated, appended, rows) = Default::default();
        let column = Column { name, scheme, epoch, filling, sealed: None, stated, appended, rows };
        device.columns.insert(slot.0, column);
        slot
    }
    fn index(&self, id: DeviceId) -> usize {
        self.devices.iter().position(|d| d.id == id).expect("a device of this pool")
    }
    /// (epoch, sequence) never names two contents, and only users' frames have a number (DESIGN §11).
    fn note_frame(&mut self, block: &[u8], name: &ColumnName) {
        let mut entries = Vec::new();
        let Ok(header) = Header::decode(block, &name.nonce, &mut entries) else { return };
        assert_eq!((header.extent, header.shard), (name.extent, name.shard));
        if header.kind == FrameKind::User {
            let there = self.frames.entry((header.epoch, header.seq)).or_insert_with(|| entries.clone());
            assert_eq!(*there, entries, "frame {} of epoch {} has one content", header.seq, header.epoch);
        } else {
            assert_eq!(header.seq, Seq(0), "a checkpoint's frame does not stand in the sequence");
        }
    }
    fn column(&mut self, place: ColumnPlace, name: ColumnName) -> Result<&mut Column, ColumnFault> {
        let index = self.index(place.device);
        let column = self.devices[index].columns.get_mut(&place.slot.0).ok_or(ColumnFault::Missing)?;
        if column.name == name { Ok(column) } else { Err(ColumnFault::Missing) }
    }
}

impl Column {
    /// The checksums that it keeps.
    fn table(&self) -> Vec<u32> {
        let rows = 0..self.sealed.unwrap_or(0);
        let zeros = crc32c(&[0; BLOCK]);
        match self.stated.is_empty() {
            true => rows.map(|row| self.appended.get(&row).copied().unwrap_or(zeros)).collect(),
            false => self.stated.clone(),
        }
    }
}

impl Columns for Pool {
    fn pool_scheme(&self) -> Option<Scheme> {
        self.inner.borrow().scheme
    }

    fn devices(&self, class: AllocClass, out: &mut Vec<DeviceView>) {
        let inner = self.inner.borrow();
        out.extend(inner.devices.iter().map(|d| DeviceView {
            id: d.id,
            domain: DomainId(d.domain),
            slots_total: d.slots.unwrap_or(inner.slots).saturating_sub(match class {
                AllocClass::User => KEPT_BACK + KEPT_FOR_COLLECTION,
                AllocClass::Collection => KEPT_BACK,
                AllocClass::Meta | AllocClass::Reappend => 0,
            }),
            slots_used: match inner.spent
                || (inner.full && matches!(class, AllocClass::User | AllocClass::Collection))
            {
                true => SLOTS,
                false => d.columns.len() as u32,
            },
            healthy: !d.away,
            avoid: false,
            away: false,
            draining: matches!(d.fate, Fate::Draining | Fate::Leaving),
        }));
    }

    async fn allocate(
        &self,
        device: DeviceId,
        name: ColumnName,
        scheme: Scheme,
        epoch: Epoch,
        _: AllocClass,
    ) -> Result<SlotIndex, ColumnFault> {
        let index = self.inner.borrow().index(device);
        let mut slot = SlotIndex(0);
        let given = &mut slot;
        self.ask(asked(What::Allocate, index, name, 0, 0), move |inner| {
            *given = inner.allocate(index, name, scheme, epoch, false);
            Ok(())
        })
        .await?;
        Ok(slot)
    }

    async fn allocate_filling(
        &self,
        device: DeviceId,
        name: ColumnName,
        scheme: Scheme,
        epoch: Epoch,
    ) -> Result<SlotIndex, ColumnFault> {
        let index = self.inner.borrow().index(device);
        let mut slot = SlotIndex(0);
        let given = &mut slot;
        self.ask(asked(What::Fill, index, name, 0, 0), move |inner| {
            *given = inner.allocate(index, name, scheme, epoch, true);
            Ok(())
        })
        .await?;
        Ok(slot)
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
        let bytes: Vec<u8> = data.to_vec();
        for (block, crc) in bytes.chunks(BLOCK).zip(crcs.chunks(4)) {
            assert_eq!(crc32c(block).to_le_bytes(), crc, "each row comes with its checksum");
        }
        self.inner.borrow_mut().note_frame(&bytes[..BLOCK], &name);
        let index = self.inner.borrow().index(place.device);
        let rows = (bytes.len() / BLOCK) as u16;
        let asked = Asked { class: Some(class), ..asked(What::Append, index, name, row.0, rows) };
        self.ask(asked, |inner| {
            let column = inner.column(place, name)?;
            if column.epoch > epoch {
                return Err(ColumnFault::Fenced);
            }
            if column.sealed.is_some() {
                return Err(ColumnFault::Refused);
            }
            for (i, block) in bytes.chunks(BLOCK).enumerate() {
                column.appended.insert(row.0 + i as u16, crc32c(block));
                let old = column.rows.insert(row.0 + i as u16, block.to_vec());
                assert!(old.is_none_or(|old| old == block), "a row has one content");
            }
            Ok(())
        })
        .await
    }

    async fn fence(&self, place: ColumnPlace, name: ColumnName, epoch: Epoch) -> Result<(), ColumnFault> {
        let index = self.inner.borrow().index(place.device);
        self.ask(asked(What::Fence, index, name, 0, 0), |inner| {
            let column = inner.column(place, name)?;
            if column.epoch > epoch {
                return Err(ColumnFault::Fenced);
            }
            column.epoch = epoch;
            Ok(())
        })
        .await
    }

    async fn read(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        row: RowIndex,
        mut buf: Buf,
    ) -> (Result<(), ColumnFault>, Buf) {
        if place.device.is_nil() {
            return (Err(ColumnFault::Device), buf);
        }
        let index = self.inner.borrow().index(place.device);
        let rows = (buf.len() / BLOCK) as u16;
        let out = &mut buf;
        let request = asked(What::Read, index, name, row.0, rows);
        let result = self
            .ask(request.clone(), move |inner| {
                let lies = (inner.lie)(&request);
                let column = inner.column(place, name)?;
                if column.filling {
                    return Err(ColumnFault::Refused);
                }
                for (i, block) in out.chunks_exact_mut(BLOCK).enumerate() {
                    match column.rows.get(&(row.0 + i as u16)) {
                        Some(there) => block.copy_from_slice(there),
                        None => block.fill(0),
                    }
                }
                out[0] ^= u8::from(lies);
                Ok(())
            })
            .await;
        (result, buf)
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
        let index = self.inner.borrow().index(place.device);
        self.ask(asked(What::Seal, index, name, 0, rows), |inner| {
            let column = inner.column(place, name)?;
            if column.epoch != epoch {
                return Err(if column.epoch > epoch { ColumnFault::Fenced } else { ColumnFault::Refused });
            }
            column.rows.retain(|row, _| *row < rows);
            column.appended.retain(|row, _| *row < rows);
            let is_hole = |row| holes.iter().any(|h| (h.0..h.0 + h.1).contains(&row));
            for row in 0..rows {
                match is_hole(row) {
                    true => {
                        column.appended.remove(&row);
                        column.rows.insert(row, vec![0; BLOCK]);
                    }
                    false if !column.rows.contains_key(&row) => return Err(ColumnFault::Refused),
                    false => {}
                }
            }
            // What is filled is read only if it is what it must be (the column server compares).
            let differs =
                |row: u16| column.appended.get(&row).is_some_and(|&c| crcs.get(row as usize) != Some(&c));
            if column.filling && (0..rows).any(differs) {
                return Err(ColumnFault::Refused);
            }
            column.sealed = Some(rows);
            column.filling = false;
            column.stated = crcs;
            Ok(())
        })
        .await
    }

    async fn free(&self, place: ColumnPlace, name: ColumnName, _: Epoch) -> Result<(), ColumnFault> {
        let index = self.inner.borrow().index(place.device);
        self.ask(asked(What::Free, index, name, 0, 0), |inner| {
            if inner.column(place, name).is_ok() {
                inner.devices[index].columns.remove(&place.slot.0);
            }
            Ok(())
        })
        .await
    }

    async fn list(&self, _: ShardId) -> Vec<(DeviceId, Result<Vec<ListedSlot>, ColumnFault>)> {
        let inner = self.inner.borrow();
        (0..inner.devices.len()).map(|i| (inner.devices[i].id, inner.listed(i))).collect()
    }

    async fn list_device(&self, device: DeviceId, _: ShardId) -> Result<Vec<ListedSlot>, ColumnFault> {
        let inner = self.inner.borrow();
        inner.listed(inner.index(device))
    }

    async fn row_crcs(&self, place: ColumnPlace, name: ColumnName) -> Result<Vec<u32>, ColumnFault> {
        let index = self.inner.borrow().index(place.device);
        let mut crcs = Vec::new();
        let out = &mut crcs;
        self.ask(asked(What::Table, index, name, 0, 0), move |inner| {
            let column = inner.column(place, name)?;
            if column.sealed.is_none() {
                return Err(ColumnFault::Refused);
            }
            *out = column.table();
            Ok(())
        })
        .await?;
        Ok(crcs)
    }

    fn fates(&self, out: &mut Vec<(DeviceId, Fate)>) {
        out.extend(self.inner.borrow().devices.iter().map(|d| (d.id, d.fate)));
    }

    fn report_bad(&self, _: DeviceId, _: Option<ColumnFault>) {}

    fn answers(&self, _: NodeId) -> bool {
        true
    }

    fn append_p99_ns(&self, _: DeviceId) -> u64 {
        self.inner.borrow().p99_ns
    }
}

fn asked(what: What, device: usize, name: ColumnName, row: u16, rows: u16) -> Asked {
    Asked { what, device, extent: name.extent, column: name.column.0 as usize, row, rows, class: None }
}

pub fn fill(blocks: usize, salt: u64) -> Vec<u8> {
    let mut x = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut data = vec![0; blocks * BLOCK];
    for word in data.chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        word.copy_from_slice(&x.to_le_bytes()[..word.len()]);
    }
    data
}

pub async fn view(data: &[u8]) -> View {
    let mut buf = Buf::alloc(data.len()).await;
    buf.copy_from_slice(data);
    buf.freeze()
}

pub async fn write(shard: &TestShard, block: u64, blocks: usize, salt: u64) -> Result<(), ShardError> {
    shard.write(L, block * BLOCK as u64, view(&fill(blocks, salt)).await).await
}

pub async fn read(shard: &TestShard, block: u64, blocks: usize) -> Result<Vec<u8>, ShardError> {
    let pieces = shard.read(L, block * BLOCK as u64, (blocks * BLOCK) as u64).await?;
    Ok(pieces.to_vec())
}

pub async fn expect(shard: &TestShard, block: u64, blocks: usize, salt: u64) {
    assert!(read(shard, block, blocks).await.unwrap() == fill(blocks, salt), "block {block}");
}

pub async fn ms(n: u64) {
    peristyle_rt::sleep(Duration::from_millis(n)).await;
}
