//! What a path says of the ANA groups: the log page, and which of several paths is the best for a namespace.

use peristyle_nvme::wire::log_page::AnaState;
use peristyle_nvme::wire::{get_u16, get_u32};

/// Header, and descriptor without its namespaces. Base 5.1.12.1.13.
const HEADER_BYTES: usize = 16;
const DESCRIPTOR_BYTES: usize = 32;

/// One ANA group as a path's log tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub group: u32,
    /// A state that is reserved counts as Inaccessible.
    pub state: AnaState,
    pub nsids: Vec<u32>,
}

/// All groups of a log page; `None` when it goes on behind these bytes.
pub fn parse(log: &[u8]) -> Option<Vec<Group>> {
    let groups = get_u16(log.get(..HEADER_BYTES)?, 8);
    let mut rest = &log[HEADER_BYTES..];
    let mut found = Vec::new();
    for _ in 0..groups {
        let (descriptor, behind) = rest.split_at_checked(DESCRIPTOR_BYTES)?;
        let bytes = (get_u32(descriptor, 4) as usize).checked_mul(4)?;
        let (nsids, behind) = behind.split_at_checked(bytes)?;
        found.push(Group {
            group: get_u32(descriptor, 0),
            state: AnaState::from_bits(descriptor[16]).unwrap_or(AnaState::Inaccessible),
            nsids: nsids.chunks_exact(4).map(|nsid| get_u32(nsid, 0)).collect(),
        });
        rest = behind;
    }
    Some(found)
}

/// What is known of one path's groups.
#[derive(Default)]
pub(super) struct View(Vec<Seen>);

struct Seen {
    group: Group,
    /// The number of the log in which it came into this state.
    since: u64,
    /// It refused a command, whatever the log said.
    refused: bool,
}

/// How good a path is for a namespace; the best is the largest. A node that was silent when it lost a shard has not told so:
/// of two that say the same, the one that says it for less long is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    optimized: bool,
    since: u64,
}

impl View {
    /// Takes what log number `number` says; numbers grow, over all paths.
    pub fn apply(&mut self, number: u64, groups: Vec<Group>) {
        let before = std::mem::take(&mut self.0);
        self.0.extend(groups.into_iter().map(|group| {
            let same = before.iter().find(|b| (b.group.group, b.group.state) == (group.group, group.state));
            Seen { since: same.map_or(number, |b| b.since), group, refused: false }
        }));
    }

    /// The group of a namespace: the one that lists it, or else the one of which Identify said so.
    fn of(&self, nsid: u32, identified: Option<u32>) -> Option<usize> {
        let lists = self.0.iter().position(|s| s.group.nsids.contains(&nsid));
        lists.or_else(|| self.0.iter().position(|s| Some(s.group.group) == identified))
    }

    /// The namespace's group is not tried here again before the next log.
    pub fn refuse(&mut self, nsid: u32, identified: Option<u32>) {
        if let Some(at) = self.of(nsid, identified) {
            self.0[at].refused = true;
        }
    }

    pub fn state(&self, nsid: u32, identified: Option<u32>) -> Option<AnaState> {
        self.of(nsid, identified).map(|at| self.0[at].group.state)
    }

    /// `None`: commands for the namespace must not go here.
    pub fn rank(&self, nsid: u32, identified: Option<u32>) -> Option<Rank> {
        let seen = &self.0[self.of(nsid, identified)?];
        let optimized = match seen.group.state {
            AnaState::Optimized => true,
            AnaState::NonOptimized => false,
            _ => return None,
        };
        (!seen.refused).then_some(Rank { optimized, since: seen.since })
    }

    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.0.iter().map(|seen| &seen.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A group, its state, and its namespaces.
    type Told<'a> = (u32, u8, &'a [u32]);

    fn log(groups: &[Told<'_>]) -> Vec<u8> {
        let mut log = vec![0; HEADER_BYTES];
        log[8..10].copy_from_slice(&(groups.len() as u16).to_le_bytes());
        for (group, state, nsids) in groups {
            let mut descriptor = vec![0; DESCRIPTOR_BYTES];
            descriptor[..4].copy_from_slice(&group.to_le_bytes());
            descriptor[4..8].copy_from_slice(&(nsids.len() as u32).to_le_bytes());
            descriptor[16] = *state;
            log.extend(descriptor);
            nsids.iter().for_each(|nsid| log.extend(nsid.to_le_bytes()));
        }
        log
    }

    fn view(logs: &[(u64, &[Told<'_>])]) -> View {
        let mut view = View::default();
        logs.iter().for_each(|(number, groups)| view.apply(*number, parse(&log(groups)).unwrap()));
        view
    }

    #[test]
    fn groups_have_their_states_and_namespaces() {
        let found = parse(&log(&[(1, 0x1, &[1, 3]), (2, 0x3, &[]), (7, 0xf, &[2]), (9, 0x8, &[4])])).unwrap();
        let told: Vec<_> = found.iter().map(|g| (g.group, g.state, &g.nsids[..])).collect();
        let expected: [(u32, AnaState, &[u32]); 4] = [
            (1, AnaState::Optimized, &[1, 3]),
            (2, AnaState::Inaccessible, &[]),
            (7, AnaState::Change, &[2]),
            (9, AnaState::Inaccessible, &[4]),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_log_that_is_cut_is_not_taken_for_a_whole_one() {
        let whole = log(&[(1, 1, &[1, 2]), (2, 3, &[3])]);
        assert!((0..whole.len()).all(|bytes| parse(&whole[..bytes]).is_none()));
        assert_eq!(
            parse(&[&whole[..], &[0; 64]].concat()).unwrap().len(),
            2,
            "what is behind it is of no matter"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let listed: usize = parse(&bytes).iter().flatten().map(|g| g.nsids.len() * 4).sum();
            prop_assert!(listed <= bytes.len());
        }
    }

    #[test]
    fn an_optimized_path_is_best_and_the_one_that_became_so_last() {
        let optimized = view(&[(1, &[(1, 1, &[1])]), (9, &[(1, 1, &[1])])]).rank(1, None);
        let other = view(&[(2, &[(1, 2, &[1])])]).rank(1, None);
        let newer = view(&[(2, &[(1, 3, &[1])]), (8, &[(1, 1, &[1])])]).rank(1, None);
        assert!(other.is_some() && other < optimized && optimized < newer);
        for state in [3, 4, 0xf] {
            assert_eq!(view(&[(1, &[(1, state, &[1])])]).rank(1, None), None);
        }
    }

    #[test]
    fn a_group_that_refused_is_tried_again_when_a_log_says_so() {
        let groups: &[Told<'_>] = &[(1, 1, &[1]), (2, 1, &[2])];
        let mut view = view(&[(1, groups)]);
        view.refuse(1, None);
        assert!(view.rank(1, None).is_none() && view.rank(2, None).is_some());
        view.apply(2, parse(&log(groups)).unwrap());
        assert!(view.rank(1, None).is_some());
    }

    #[test]
    fn a_namespace_that_no_group_lists_is_in_the_one_that_identify_names() {
        let view = view(&[(1, &[(1, 3, &[]), (2, 1, &[])])]);
        assert_eq!(view.state(5, None), None);
        assert_eq!(view.state(5, Some(1)), Some(AnaState::Inaccessible));
        assert!(view.rank(5, Some(2)).is_some());
    }
}
