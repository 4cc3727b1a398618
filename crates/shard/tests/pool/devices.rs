//! What tests of repair do to devices of the pool, and what must hold of their columns.

use super::{Asked, BLOCK, Column, Pool};
use peristyle_base::{ExtentId, Scheme, crc32c};
use peristyle_rt::Duration;
use peristyle_shard::Fate;
use std::collections::BTreeMap;

impl Pool {
    pub fn fate(&self, device: usize, fate: Fate) {
        let device = &mut self.inner.borrow_mut().devices[device];
        device.away = matches!(fate, Fate::Away | Fate::Lost);
        device.fate = fate;
    }
    /// It fails together with others of this number from now on.
    pub fn domain(&self, device: usize, domain: u32) {
        self.inner.borrow_mut().devices[device].domain = domain;
    }
    pub fn all_fates(&self) -> Vec<Fate> {
        self.inner.borrow().devices.iter().map(|d| d.fate).collect()
    }
    /// So many slots on one device.
    pub fn slots_of(&self, device: usize, slots: u32) {
        self.inner.borrow_mut().devices[device].slots = Some(slots);
    }
    /// What each device says of its appends from now on.
    pub fn p99(&self, p99: Duration) {
        self.inner.borrow_mut().p99_ns = p99.as_nanos() as u64;
    }
    /// The pool's scheme from now on.
    pub fn set_scheme(&self, scheme: Scheme) {
        self.inner.borrow_mut().scheme = Some(scheme);
    }
    /// Schemes of all columns that are there, and how many have each.
    pub fn schemes(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for column in self.inner.borrow().devices.iter().flat_map(|d| d.columns.values()) {
            *counts.entry(column.scheme.to_string()).or_default() += 1;
        }
        counts
    }
    /// Everything on a device is gone.
    pub fn clear(&self, device: usize) {
        self.inner.borrow_mut().devices[device].columns.clear();
    }
    /// A sealed column has so many more rows.
    pub fn lengthen(&self, extent: ExtentId, column: usize, more: u16) {
        for device in &mut self.inner.borrow_mut().devices {
            for c in device.columns.values_mut() {
                if c.name.extent == extent && c.name.column.0 as usize == column {
                    let rows = c.sealed.expect("it is sealed");
                    c.stated = c.table();
                    for row in rows..rows + more {
                        c.rows.insert(row, vec![row as u8; BLOCK]);
                        c.stated.push(crc32c(&vec![row as u8; BLOCK]));
                    }
                    c.sealed = Some(rows + more);
                }
            }
        }
    }
    /// A sealed column of a device is as it was before its seal; false when it has none.
    pub fn unseal_another(&self, device: usize) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        let sealed = inner.devices[device].columns.values_mut().find(|c| c.sealed.is_some());
        sealed.map(|c| c.sealed = None).is_some()
    }
    /// A read that `lie` picks gives a wrong bit, though what the device has is right.
    pub fn lie(&self, lie: impl FnMut(&Asked) -> bool + 'static) {
        self.inner.borrow_mut().lie = Box::new(lie);
    }
    /// Slots in use on each device.
    pub fn used(&self) -> Vec<usize> {
        self.inner.borrow().devices.iter().map(|d| d.columns.len()).collect()
    }
    /// Where a column lies, as often as it is there: device, rows if sealed.
    pub fn copies(&self, extent: ExtentId, column: usize) -> Vec<(usize, Option<u16>)> {
        let inner = self.inner.borrow();
        let devices = inner.devices.iter().enumerate();
        let all = devices.flat_map(|(i, d)| d.columns.values().map(move |c| (i, c)));
        all.filter(|(_, c)| c.name.extent == extent && c.name.column.0 as usize == column)
            .map(|(i, c)| (i, c.sealed))
            .collect()
    }
    pub fn filling(&self) -> usize {
        let inner = self.inner.borrow();
        inner.devices.iter().flat_map(|d| d.columns.values()).filter(|c| c.filling).count()
    }
    /// Every extent that is sealed: each column once, on its own device, sealed at the same rows, with the checksums that
    /// its rows have, and parity that agrees with the data.
    pub fn check_sealed(&self) -> usize {
        let inner = self.inner.borrow();
        let mut extents: BTreeMap<ExtentId, Vec<(usize, &Column)>> = BTreeMap::new();
        for (i, device) in inner.devices.iter().enumerate() {
            for c in device.columns.values().filter(|c| c.sealed.is_some()) {
                extents.entry(c.name.extent).or_default().push((i, c));
            }
        }
        for (id, columns) in &mut extents {
            columns.sort_by_key(|(_, c)| c.name.column.0);
            let scheme = columns[0].1.scheme;
            let names: Vec<usize> = columns.iter().map(|(_, c)| c.name.column.0 as usize).collect();
            assert_eq!(names, (0..scheme.width()).collect::<Vec<_>>(), "extent {id}: each column once");
            let mut devices: Vec<usize> = columns.iter().map(|(device, _)| *device).collect();
            devices.sort_unstable();
            devices.dedup();
            assert_eq!(devices.len(), scheme.width(), "extent {id}: a device has two columns");
            let rows = columns[0].1.sealed.unwrap();
            for row in 0..rows {
                let blocks: Vec<&[u8]> = columns.iter().map(|(_, c)| &c.rows[&row][..]).collect();
                for ((_, column), block) in columns.iter().zip(&blocks) {
                    assert_eq!(column.table()[row as usize], crc32c(block), "extent {id} row {row}");
                }
                let mut parity = vec![vec![0; BLOCK]; scheme.m()];
                let mut out: Vec<&mut [u8]> = parity.iter_mut().map(|p| &mut p[..]).collect();
                peristyle_ec::Code::new(scheme).encode(&blocks[..scheme.k()], &mut out);
                for (p, parity) in parity.iter().enumerate() {
                    assert!(blocks[scheme.k() + p] == parity, "extent {id} row {row}: parity disagrees");
                }
            }
        }
        extents.len()
    }
}
