//! Random requests, right and wrong ones, against a model that fits a screen; the process and the power fail between.

mod common;
use common::*;
use peristyle_base::{COLUMN_ROWS, Epoch, RowIndex, SlotIndex};
use peristyle_column::{AllocClass, Allocate, ColumnError, RowRange, Seal, ServerConfig, SlotState, check};
use peristyle_rt::sim::run;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SLOTS: u32 = 6;

#[derive(Clone, Debug)]
enum Step {
    Allocate { extent: u64, epoch: u64 },
    Append { extent: u64, epoch: u64, row: u16, tags: Vec<u8> },
    Fence { extent: u64, epoch: u64 },
    Seal { extent: u64, epoch: u64, rows: u16 },
    Free { extent: u64, epoch: u64 },
    Read { extent: u64 },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let extent = 0..8u64;
    let epoch = 1..4u64;
    prop_oneof![
        4 => (extent.clone(), epoch.clone()).prop_map(|(extent, epoch)| Step::Allocate { extent, epoch }),
        8 => (extent.clone(), epoch.clone(), 0..8u16, prop::collection::vec(1..4u8, 1..4))
            .prop_map(|(extent, epoch, row, tags)| Step::Append { extent, epoch, row, tags }),
        2 => (extent.clone(), epoch.clone()).prop_map(|(extent, epoch)| Step::Fence { extent, epoch }),
        3 => (extent.clone(), epoch.clone(), 0..10u16)
            .prop_map(|(extent, epoch, rows)| Step::Seal { extent, epoch, rows }),
        3 => (extent.clone(), epoch).prop_map(|(extent, epoch)| Step::Free { extent, epoch }),
        4 => extent.prop_map(|extent| Step::Read { extent }),
        1 => Just(Step::Restart),
    ]
}

/// What a column must look like.
#[derive(Clone, Debug)]
struct Column {
    slot: SlotIndex,
    epoch: u64,
    fenced: bool,
    rows: BTreeMap<u16, u8>,
    /// Rows that the server has seen since it was opened: only of these it knows the content.
    seen: BTreeSet<u16>,
    sealed: Option<u16>,
}

#[derive(Default)]
struct Model(BTreeMap<u64, Column>);

impl Model {
    fn append(&mut self, extent: u64, epoch: u64, row: u16, tags: &[u8]) -> Result<(), ColumnError> {
        let column = self.0.get_mut(&extent).expect("checked");
        let have = Epoch(column.epoch);
        if epoch < column.epoch {
            return Err(ColumnError::Stale { have });
        }
        if column.sealed.is_some() {
            return Err(ColumnError::Sealed);
        }
        if epoch > column.epoch || column.fenced {
            return Err(ColumnError::NotOpener { have });
        }
        for (row, tag) in (row..).zip(tags) {
            if column.seen.contains(&row) && column.rows[&row] != *tag {
                return Err(ColumnError::RowTaken { row: RowIndex(row) });
            }
        }
        column.rows.extend((row..).zip(tags.iter().copied()));
        column.seen.extend(row..row + tags.len() as u16);
        Ok(())
    }
}

async fn play(bed: &mut Bed, steps: Vec<Step>) {
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Allocate { extent, epoch } => {
                let wish = Allocate { epoch: Epoch(epoch), class: AllocClass::User, ..wish(extent) };
                let answer = bed.s().allocate(wish).await;
                match model.0.get(&extent) {
                    Some(c) if epoch < c.epoch => {
                        assert_eq!(answer, Err(ColumnError::Stale { have: Epoch(c.epoch) }));
                    }
                    Some(c) if c.sealed.is_some() => assert_eq!(answer, Err(ColumnError::Sealed)),
                    Some(c) if c.fenced || epoch > c.epoch => {
                        assert_eq!(answer, Err(ColumnError::NotOpener { have: Epoch(c.epoch) }));
                    }
                    Some(c) => assert_eq!(answer, Ok(c.slot)),
                    None if model.0.len() == SLOTS as usize => assert_eq!(answer, Err(ColumnError::Full)),
                    None => {
                        let slot = answer.unwrap();
                        assert!(model.0.values().all(|c| c.slot != slot), "one slot for two columns");
                        let (rows, seen) = (BTreeMap::new(), BTreeSet::new());
                        let column = Column { slot, epoch, fenced: false, rows, seen, sealed: None };
                        model.0.insert(extent, column);
                    }
                }
            }
            Step::Append { extent, epoch, row, tags } => {
                let Some(column) = model.0.get(&extent) else {
                    let slot = SlotIndex(extent as u32 % SLOTS);
                    let answer = bed.append_at(slot, extent, Epoch(epoch), row, &tags).await;
                    assert!(matches!(answer, Err(ColumnError::NotFound | ColumnError::WrongName)));
                    continue;
                };
                let answer = bed.append_at(column.slot, extent, Epoch(epoch), row, &tags).await;
                assert_eq!(answer, model.append(extent, epoch, row, &tags));
            }
            Step::Fence { extent, epoch } => {
                let Some(column) = model.0.get_mut(&extent) else { continue };
                let answer = bed.s().fence(column.slot, &name(extent), Epoch(epoch)).await;
                if epoch < column.epoch {
                    assert_eq!(answer, Err(ColumnError::Stale { have: Epoch(column.epoch) }));
                } else {
                    let raised = epoch > column.epoch;
                    column.epoch = epoch;
                    column.fenced |= raised && column.sealed.is_none();
                    assert_eq!(answer.unwrap().epoch, Epoch(epoch));
                }
            }
            Step::Seal { extent, epoch, rows } => {
                let Some(column) = model.0.get_mut(&extent) else { continue };
                let holes: Vec<RowRange> = (0..rows.min(COLUMN_ROWS))
                    .filter(|r| !column.rows.contains_key(r))
                    .map(|r| RowRange::new(r, 1))
                    .collect();
                let crcs: Vec<u32> =
                    (0..rows).map(|r| crc_of(column.rows.get(&r).copied().unwrap_or(0))).collect();
                let seal = Seal { rows: RowIndex(rows), holes: &holes, crcs: Some(&crcs) };
                let answer = bed.s().seal(column.slot, &name(extent), Epoch(epoch), seal).await;
                let have = Epoch(column.epoch);
                match column.sealed {
                    _ if epoch < column.epoch => assert_eq!(answer, Err(ColumnError::Stale { have })),
                    Some(old) if old == rows => assert_eq!(answer, Ok(())),
                    Some(_) => assert_eq!(answer, Err(ColumnError::Sealed)),
                    None if epoch > column.epoch => assert_eq!(answer, Err(ColumnError::NotOpener { have })),
                    None => {
                        assert_eq!(answer, Ok(()));
                        column.sealed = Some(rows);
                        for r in 0..rows {
                            column.rows.entry(r).or_insert(0);
                        }
                    }
                }
            }
            Step::Free { extent, epoch } => {
                let Some(column) = model.0.get(&extent) else { continue };
                let answer = bed.s().free(column.slot, &name(extent), Epoch(epoch)).await;
                if epoch < column.epoch {
                    assert_eq!(answer, Err(ColumnError::Stale { have: Epoch(column.epoch) }));
                } else {
                    assert_eq!(answer, Ok(()));
                    model.0.remove(&extent);
                }
            }
            Step::Read { extent } => {
                let Some(column) = model.0.get(&extent) else { continue };
                for (&row, &tag) in &column.rows {
                    let read = bed.read(column.slot, extent, row, 1).await;
                    match column.sealed {
                        Some(rows) if row >= rows => assert_eq!(read, Err(ColumnError::RowRange)),
                        Some(_) => {
                            assert_eq!(read, Ok(vec![tag]));
                            assert_eq!(bed.read_verified(column.slot, extent, row, 1).await, read);
                        }
                        None => assert_eq!(read, Ok(vec![tag])),
                    }
                }
            }
            Step::Restart => {
                bed.restart().await;
                model.0.values_mut().for_each(|c| c.seen.clear());
            }
        }
        compare(bed, &model);
    }
    let report = check(bed.s().device(), |_, _| ()).await;
    assert!(report.is_clean() && report.inspection.differing_pages.is_empty());
}

fn compare(bed: &Bed, model: &Model) {
    let mut listed: Vec<_> =
        bed.s().list_all().iter().map(|c| (c.name, c.slot, c.epoch.0, c.fenced)).collect();
    listed.sort_by_key(|c| c.0.extent);
    let wanted: Vec<_> = model.0.iter().map(|(&e, c)| (name(e), c.slot, c.epoch, c.fenced)).collect();
    assert_eq!(listed, wanted);
    let usage = bed.s().usage();
    let sealed = model.0.values().filter(|c| c.sealed.is_some()).count();
    assert_eq!((usage.sealed as usize, usage.free as usize), (sealed, SLOTS as usize - model.0.len()));
    for column in bed.s().list_all().iter().filter(|c| c.state == SlotState::Sealed) {
        assert_eq!(Some(column.rows.0), model.0[&column.name.extent.0].sealed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn the_server_agrees_with_the_model_over_restarts(
        steps in prop::collection::vec(step(), 1..120), seed in any::<u64>(),
    ) {
        run(seed, move |env| async move {
            let config = ServerConfig { open_columns: 8, ..ServerConfig::default() };
            let mut bed = Bed::with(env, SLOTS, config).await;
            play(&mut bed, steps).await;
        });
    }
}
