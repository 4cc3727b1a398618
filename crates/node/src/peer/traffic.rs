//! What one reactor asks other nodes and is answered, counted by what it is about.

use peristyle_cluster::WriteClass;
use peristyle_cluster::peer::Request;
use std::cell::RefCell;

/// What requests are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RequestKind {
    AppendUser = 0,
    AppendMeta = 1,
    AppendReappend = 2,
    AppendRepair = 3,
    AppendCollection = 4,
    Read = 5,
    Allocate = 6,
    Fence = 7,
    Seal = 8,
    Free = 9,
    List = 10,
    RowCrcs = 11,
    /// Whether a node and its devices are there.
    Ping = 12,
    Probe = 13,
    /// Who owns which shard.
    Lease = 14,
    /// Who may hand on commands of hosts.
    Pass = 15,
    /// A command of a host.
    Forward = 16,
}

impl RequestKind {
    pub const ALL: [RequestKind; 17] = [
        RequestKind::AppendUser,
        RequestKind::AppendMeta,
        RequestKind::AppendReappend,
        RequestKind::AppendRepair,
        RequestKind::AppendCollection,
        RequestKind::Read,
        RequestKind::Allocate,
        RequestKind::Fence,
        RequestKind::Seal,
        RequestKind::Free,
        RequestKind::List,
        RequestKind::RowCrcs,
        RequestKind::Ping,
        RequestKind::Probe,
        RequestKind::Lease,
        RequestKind::Pass,
        RequestKind::Forward,
    ];

    pub fn name(self) -> &'static str {
        match self {
            RequestKind::AppendUser => "append user",
            RequestKind::AppendMeta => "append meta",
            RequestKind::AppendReappend => "append again",
            RequestKind::AppendRepair => "append repair",
            RequestKind::AppendCollection => "append collection",
            RequestKind::Read => "read",
            RequestKind::Allocate => "allocate",
            RequestKind::Fence => "fence",
            RequestKind::Seal => "seal",
            RequestKind::Free => "free",
            RequestKind::List => "list",
            RequestKind::RowCrcs => "row checksums",
            RequestKind::Ping => "ping",
            RequestKind::Probe => "probe",
            RequestKind::Lease => "lease",
            RequestKind::Pass => "pass",
            RequestKind::Forward => "forward",
        }
    }

    pub(super) fn of(request: &Request<'_>) -> RequestKind {
        match request {
            Request::Append { class, .. } => match class {
                WriteClass::User => RequestKind::AppendUser,
                WriteClass::Meta => RequestKind::AppendMeta,
                WriteClass::Reappend => RequestKind::AppendReappend,
                WriteClass::Repair => RequestKind::AppendRepair,
                WriteClass::Collection => RequestKind::AppendCollection,
            },
            Request::Read { .. } => RequestKind::Read,
            Request::Allocate { .. } => RequestKind::Allocate,
            Request::Fence { .. } => RequestKind::Fence,
            Request::Seal { .. } => RequestKind::Seal,
            Request::Free { .. } => RequestKind::Free,
            Request::List { .. } => RequestKind::List,
            Request::RowCrcs { .. } => RequestKind::RowCrcs,
            Request::Ping { .. } => RequestKind::Ping,
            Request::Probe { .. } => RequestKind::Probe,
            Request::Claim { .. } | Request::Renew { .. } | Request::Release { .. } => RequestKind::Lease,
            Request::Passes { .. } => RequestKind::Pass,
            Request::Forward { .. } => RequestKind::Forward,
        }
    }
}

/// Bytes are of messages, heads and payload; TLS, TCP and what is below add theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCount {
    pub requests: u64,
    pub request_bytes: u64,
    pub answers: u64,
    pub answer_bytes: u64,
}

impl RequestCount {
    pub fn add(&mut self, more: &RequestCount) {
        self.requests += more.requests;
        self.request_bytes += more.request_bytes;
        self.answers += more.answers;
        self.answer_bytes += more.answer_bytes;
    }
}

/// One count for each of [`RequestKind::ALL`]. Both are counted by who asks, so a cluster's nodes together count each message once.
pub type RequestCounts = [RequestCount; RequestKind::ALL.len()];

#[derive(Default)]
pub(super) struct Traffic(RefCell<RequestCounts>);

impl Traffic {
    pub fn asked(&self, kind: RequestKind, bytes: u64) {
        let count = &mut self.0.borrow_mut()[kind as usize];
        count.requests += 1;
        count.request_bytes += bytes;
    }

    pub fn answered(&self, kind: RequestKind, bytes: u64) {
        let count = &mut self.0.borrow_mut()[kind as usize];
        count.answers += 1;
        count.answer_bytes += bytes;
    }

    pub fn counts(&self) -> RequestCounts {
        *self.0.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_place_and_a_name_of_its_own() {
        for (place, kind) in RequestKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
            assert_eq!(RequestKind::ALL.iter().filter(|other| other.name() == kind.name()).count(), 1);
        }
        let traffic = Traffic::default();
        traffic.asked(RequestKind::Read, 84);
        traffic.asked(RequestKind::Read, 84);
        traffic.answered(RequestKind::Read, 4120);
        let mut all = RequestCount::default();
        traffic.counts().iter().for_each(|count| all.add(count));
        assert_eq!(traffic.counts()[RequestKind::Read as usize], all);
        assert_eq!((all.requests, all.request_bytes, all.answers, all.answer_bytes), (2, 168, 1, 4120));
    }
}
