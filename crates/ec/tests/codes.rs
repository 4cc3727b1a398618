//! Every scheme, every loss set, every path of this processor, against the scalar twin.

use peristyle_base::{ColumnIndex, Scheme};
use peristyle_ec::{Code, ColumnSet, GRAIN_BYTES, NotEnough, Path, Plan, gf};
use proptest::prelude::*;

fn schemes() -> impl Iterator<Item = Scheme> {
    (1..=16).flat_map(|k| (0..=4).filter_map(move |m| Scheme::new(k, m)))
}

fn paths() -> impl Iterator<Item = Path> {
    Path::ALL.into_iter().filter(|path| path.is_available())
}

/// Every set of at most m columns.
fn losses(scheme: Scheme) -> impl Iterator<Item = ColumnSet> {
    (0..1u32 << scheme.width()).map(ColumnSet).filter(move |set| set.count() <= scheme.m())
}

/// Bytes without a pattern, the same for the same seed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// An extent in memory: k+m columns.
struct Extent {
    code: Code,
    columns: Vec<Vec<u8>>,
}

impl Extent {
    fn new(scheme: Scheme, path: Path, bytes: usize) -> Extent {
        let code = Code::with_path(scheme, path).expect("an available path");
        let mut columns: Vec<_> = (0..scheme.k()).map(|i| noise(i as u64 + 1, bytes)).collect();
        let mut parity = vec![vec![0xee; bytes]; scheme.m()];
        code.encode(&slices(&columns), &mut slices_mut(&mut parity));
        columns.append(&mut parity);
        Extent { code, columns }
    }

    /// Reconstructs `lost` from what `have` holds and compares.
    fn check(&self, lost: ColumnSet, have: ColumnSet) {
        let plan = self.code.plan(lost, have).expect("enough columns");
        let out = self.reconstruct(&plan);
        for (target, out) in plan.targets().iter().zip(&out) {
            let want = &self.columns[target.0 as usize];
            assert!(out == want, "{} {:?} lost {lost:?}", self.code.scheme(), self.code.path());
        }
    }

    fn reconstruct(&self, plan: &Plan) -> Vec<Vec<u8>> {
        let sources: Vec<_> =
            plan.sources().iter().map(|c| Some(self.columns[c.0 as usize].as_slice())).collect();
        let mut out = vec![vec![0xdd; self.columns[0].len()]; plan.targets().len()];
        self.code.reconstruct(plan, &sources, &mut slices_mut(&mut out));
        out
    }
}

fn slices(columns: &[Vec<u8>]) -> Vec<&[u8]> {
    columns.iter().map(Vec::as_slice).collect()
}
fn slices_mut(columns: &mut [Vec<u8>]) -> Vec<&mut [u8]> {
    columns.iter_mut().map(Vec::as_mut_slice).collect()
}

#[test]
fn every_loss_of_at_most_m_columns_is_recovered_by_every_path_in_every_scheme() {
    for path in paths() {
        for scheme in schemes() {
            let extent = Extent::new(scheme, path, GRAIN_BYTES);
            losses(scheme).for_each(|lost| extent.check(lost, ColumnSet::all(scheme).without(lost)));
        }
    }
}

#[test]
fn one_wanted_column_is_recovered_while_others_are_lost_too() {
    for scheme in schemes() {
        let extent = Extent::new(scheme, Path::best(), GRAIN_BYTES);
        for lost in losses(scheme).filter(|lost| lost.count() >= 2) {
            let have = ColumnSet::all(scheme).without(lost);
            lost.iter().for_each(|column| extent.check(ColumnSet::one(column), have));
        }
    }
}

#[test]
fn every_path_computes_what_the_scalar_twin_computes_at_full_length() {
    let bytes = 4096 + 5 * GRAIN_BYTES; // main loop and remainder
    for scheme in schemes() {
        let twin = Extent::new(scheme, Path::Scalar, bytes);
        for path in paths() {
            assert!(twin.columns == Extent::new(scheme, path, bytes).columns, "{scheme} {path:?}");
        }
    }
}

#[test]
fn column_0_and_the_first_parity_have_only_ones() {
    for scheme in schemes().filter(|scheme| scheme.m() > 0) {
        let code = Code::new(scheme);
        let header = noise(7, GRAIN_BYTES);
        let mut data = vec![None; scheme.k()];
        data[0] = Some(header.as_slice());
        let mut parity = vec![vec![0; GRAIN_BYTES]; scheme.m()];
        code.encode_sparse(&data, &mut slices_mut(&mut parity));
        assert!(parity.iter().all(|p| *p == header), "{scheme}: the header row's parity is the header");

        let extent = Extent::new(scheme, Path::best(), GRAIN_BYTES);
        for at in 0..GRAIN_BYTES {
            let xor = extent.columns[..scheme.k()].iter().fold(0, |sum, column| sum ^ column[at]);
            assert_eq!(extent.columns[scheme.k()][at], xor, "{scheme}");
        }
    }
}

#[test]
fn the_second_parity_is_that_of_raid_6() {
    let extent = Extent::new(Scheme::new(6, 2).unwrap(), Path::best(), GRAIN_BYTES);
    for at in 0..GRAIN_BYTES {
        // H. P. Anvin, "The mathematics of RAID-6": Horner's rule from the last column down.
        let q = extent.columns[..6].iter().rev().fold(0, |q, column| gf::mul(q, 2) ^ column[at]);
        assert_eq!(extent.columns[7][at], q);
    }
}

#[test]
fn the_parities_of_a_shorter_code_are_the_first_of_a_longer_one() {
    for k in 1..=16 {
        let longest = Extent::new(Scheme::new(k, 4).unwrap(), Path::best(), GRAIN_BYTES);
        for m in 0..4 {
            let shorter = Extent::new(Scheme::new(k, m).unwrap(), Path::best(), GRAIN_BYTES);
            assert!(longest.columns.starts_with(&shorter.columns));
        }
    }
}

#[test]
fn replication_copies() {
    let extent = Extent::new(Scheme::new(1, 4).unwrap(), Path::best(), GRAIN_BYTES);
    assert!(extent.columns.iter().all(|column| *column == extent.columns[0]));
}

#[test]
fn one_column_too_few_is_refused_with_what_is_missing() {
    for scheme in schemes().filter(|scheme| scheme.k() <= 8) {
        let code = Code::new(scheme);
        for have in (0..1 << scheme.width()).map(ColumnSet).filter(|set| set.count() == scheme.k() - 1) {
            let wanted = ColumnSet::all(scheme).without(have).iter().next().unwrap();
            let refused = NotEnough { have: scheme.k() - 1, need: scheme.k() };
            assert_eq!(code.plan(ColumnSet::one(wanted), have), Err(refused));
            // Claiming to have what is wanted does not help.
            let claimed = have.with(wanted);
            assert_eq!(code.plan(ColumnSet::one(wanted), claimed), Err(refused));
        }
    }
}

#[test]
fn a_plan_reads_data_and_the_first_parity_where_it_can() {
    let code = Code::new(Scheme::new(4, 2).unwrap());
    let lost = ColumnSet::one(ColumnIndex(2));
    let plan = code.plan(lost, ColumnSet::all(code.scheme())).unwrap();
    assert_eq!(plan.sources(), [0, 1, 3, 4].map(ColumnIndex));
    assert_eq!(plan.targets(), [ColumnIndex(2)]);
}

#[test]
fn nothing_wanted_is_a_plan_for_nothing() {
    let extent = Extent::new(Scheme::new(4, 2).unwrap(), Path::best(), GRAIN_BYTES);
    let plan = extent.code.plan(ColumnSet::EMPTY, ColumnSet::all(extent.code.scheme())).unwrap();
    assert!(plan.targets().is_empty() && extent.reconstruct(&plan).is_empty());
}

#[test]
#[should_panic(expected = "not as long as the outputs")]
fn a_short_source_is_refused_before_any_byte_is_touched() {
    let code = Code::new(Scheme::new(2, 1).unwrap());
    code.encode(&[&[1; 128], &[1; 64]], &mut [&mut [0; 128]]);
}

#[test]
#[should_panic(expected = "multiple of 64")]
fn a_length_beside_the_grain_is_refused() {
    Code::new(Scheme::new(2, 1).unwrap()).encode(&[&[1; 100], &[1; 100]], &mut [&mut [0; 100]]);
}

#[test]
#[should_panic(expected = "do not fit the scheme")]
fn a_wrong_number_of_columns_is_refused() {
    Code::new(Scheme::new(2, 1).unwrap()).encode(&[&[1; 64]], &mut [&mut [0; 64]]);
}

fn any_scheme() -> impl Strategy<Value = Scheme> {
    (1..=16u8, 0..=4u8).prop_map(|(k, m)| Scheme::new(k, m).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Holes, any length, any alignment, any loss: each path agrees with the twin and gives the data back.
    #[test]
    fn rows_with_holes_encode_and_decode_alike_on_every_path(
        scheme in any_scheme(), grains in 0..40usize, offset in 0..64usize, holes: u16, loss: u32, seed: u64,
    ) {
        let bytes = grains * GRAIN_BYTES;
        let memory: Vec<_> = (0..scheme.k()).map(|i| noise(seed ^ i as u64, offset + bytes)).collect();
        let zeros = vec![0; bytes];
        let sparse: Vec<_> = (0..scheme.k())
            .map(|i| (holes >> i & 1 == 0).then(|| &memory[i][offset..]))
            .collect();
        let dense: Vec<_> = sparse.iter().map(|column| column.unwrap_or(&zeros)).collect();

        let twin = Code::with_path(scheme, Path::Scalar).unwrap();
        let mut want = vec![zeros.clone(); scheme.m()];
        twin.encode(&dense, &mut slices_mut(&mut want));

        for path in paths() {
            let code = Code::with_path(scheme, path).unwrap();
            let mut parity = vec![vec![0xaa; offset + bytes]; scheme.m()];
            code.encode_sparse(&sparse, &mut parity.iter_mut().map(|p| &mut p[offset..]).collect::<Vec<_>>());
            prop_assert!(parity.iter().zip(&want).all(|(p, w)| p[offset..] == w[..]));
            prop_assert!(parity.iter().all(|p| p[..offset].iter().all(|&b| b == 0xaa)), "wrote outside");

            let mut grown = vec![zeros.clone(); scheme.m()];
            for (i, column) in sparse.iter().enumerate().filter_map(|(i, c)| c.map(|c| (i, c))) {
                code.accumulate(ColumnIndex(i as u8), column, &mut slices_mut(&mut grown));
            }
            prop_assert!(grown == want);

            let lost: ColumnSet = (0..scheme.width() as u8).map(ColumnIndex)
                .filter(|c| loss >> c.0 & 1 != 0).take(scheme.m()).collect();
            let plan = code.plan(lost, ColumnSet::all(scheme).without(lost)).unwrap();
            let column = |c: ColumnIndex| match (c.0 as usize).checked_sub(scheme.k()) {
                None => sparse[c.0 as usize],
                Some(parity) => Some(want[parity].as_slice()),
            };
            let sources: Vec<_> = plan.sources().iter().map(|&c| column(c)).collect();
            let mut out = vec![vec![0x55; bytes]; plan.targets().len()];
            code.reconstruct(&plan, &sources, &mut slices_mut(&mut out));
            for (&target, out) in plan.targets().iter().zip(&out) {
                prop_assert!(out.as_slice() == column(target).unwrap_or(&zeros));
            }
        }
    }
}
