//! The commands that bring a queue up: Connect, then (admin queue) enable the controller by properties.

use super::Data;
use crate::wire::opcode::fctype;
use crate::wire::{Cid, Cqe, Sqe, Status, get_u64, put_u16, put_u32, put_u64};

/// Size of Connect's data. Base 6.3 figure 545.
pub const CONNECT_DATA_BYTES: usize = 1024;
/// CNTLID of an admin Connect that takes any controller (dynamic model). Base 6.3.
pub const CNTLID_ANY: u16 = 0xffff;

const NQN_BYTES: usize = 256;
/// Property offsets, Base 3.1.4.
const CAP: u32 = 0x00;
const CC: u32 = 0x14;
const CSTS: u32 = 0x1c;
/// CC: IOCQES 4 (16 bytes), IOSQES 6 (64 bytes), EN. Base 3.1.4.5.
const CC_ENABLE: u32 = 4 << 20 | 6 << 16 | 1;
const CSTS_READY: u32 = 1;
const CSTS_FATAL: u32 = 2;

/// Who connects to what. NQNs are at most 223 bytes; longer ones are cut, and refused by the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connect<'a> {
    pub host_id: [u8; 16],
    pub host_nqn: &'a str,
    pub subsystem_nqn: &'a str,
    /// [`CNTLID_ANY`] on the admin queue, the admin Connect's answer on I/O queues.
    pub cntlid: u16,
    pub qid: u16,
    /// Entries of the queue; SQSIZE is one less.
    pub entries: u32,
    /// 0 turns keep alive off.
    pub keep_alive_ms: u32,
    /// CATTR bit 2 cleared.
    pub flow_control: bool,
}

impl Connect<'_> {
    /// Base 6.3 figure 544.
    pub fn sqe(&self) -> Sqe {
        let mut sqe = Sqe::fabrics(fctype::CONNECT, Cid(0));
        put_u16(&mut sqe.0, 42, self.qid);
        put_u16(&mut sqe.0, 44, self.entries.wrapping_sub(1) as u16);
        sqe.0[46] = if self.flow_control { 0 } else { 1 << 2 };
        put_u32(&mut sqe.0, 48, self.keep_alive_ms);
        sqe
    }
    /// Base 6.3 figure 545.
    pub fn data(&self, out: &mut [u8; CONNECT_DATA_BYTES]) {
        out.fill(0);
        out[..16].copy_from_slice(&self.host_id);
        put_u16(out, 16, self.cntlid);
        for (at, nqn) in [(256, self.subsystem_nqn), (512, self.host_nqn)] {
            let len = nqn.len().min(NQN_BYTES - 1);
            out[at..at + len].copy_from_slice(&nqn.as_bytes()[..len]);
        }
    }
}

/// Base 6.5 figure 550. `wide`: 8 bytes.
pub fn property_get(offset: u32, wide: bool) -> Sqe {
    let mut sqe = Sqe::fabrics(fctype::PROPERTY_GET, Cid(0));
    sqe.0[40] = u8::from(wide);
    put_u32(&mut sqe.0, 44, offset);
    sqe
}

/// Base 6.6 figure 552, 4 bytes.
pub fn property_set(offset: u32, value: u32) -> Sqe {
    let mut sqe = Sqe::fabrics(fctype::PROPERTY_SET, Cid(0));
    put_u32(&mut sqe.0, 44, offset);
    put_u64(&mut sqe.0, 48, u64::from(value));
    sqe
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Connect,
    ReadCap,
    Enable,
    ReadStatus,
    Ready,
    Failed(Status),
}

/// What to do next for a queue to be usable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Submit it; Connect's data was written to the buffer that was passed.
    Submit(Sqe, Data),
    /// As `Submit`, but let the target breathe: it is not ready yet.
    SubmitLater(Sqe, Data),
    Ready,
    Failed(Status),
}

/// Walks a queue to readiness, one command at a time.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    admin: bool,
    step: Step,
    retried: bool,
    cntlid: u16,
    cap: u64,
}

impl Setup {
    pub fn admin() -> Setup {
        Setup { admin: true, step: Step::Connect, retried: false, cntlid: 0, cap: 0 }
    }
    pub fn io() -> Setup {
        Setup { admin: false, ..Setup::admin() }
    }
    /// The controller that answered Connect.
    pub fn cntlid(&self) -> u16 {
        self.cntlid
    }
    /// CAP, Base 3.1.4.1.
    pub fn cap(&self) -> u64 {
        self.cap
    }
    /// MQES as a count of entries.
    pub fn entries_max(&self) -> u32 {
        (self.cap & 0xffff) as u32 + 1
    }
    /// The next command. Its answer goes to [`Self::handle`].
    pub fn next(&mut self, connect: &Connect<'_>, data: &mut [u8; CONNECT_DATA_BYTES]) -> Next {
        match self.step {
            Step::Connect => {
                connect.data(data);
                Next::Submit(connect.sqe(), Data::ToTarget(CONNECT_DATA_BYTES as u32))
            }
            Step::ReadCap => Next::Submit(property_get(CAP, true), Data::None),
            Step::Enable => Next::Submit(property_set(CC, CC_ENABLE), Data::None),
            Step::ReadStatus if self.retried => Next::SubmitLater(property_get(CSTS, false), Data::None),
            Step::ReadStatus => Next::Submit(property_get(CSTS, false), Data::None),
            Step::Ready => Next::Ready,
            Step::Failed(status) => Next::Failed(status),
        }
    }
    pub fn handle(&mut self, cqe: &Cqe) {
        if !cqe.status().is_success() {
            self.step = Step::Failed(cqe.status());
            return;
        }
        self.step = match self.step {
            Step::Connect => {
                self.cntlid = cqe.dw0() as u16;
                if self.admin { Step::ReadCap } else { Step::Ready }
            }
            Step::ReadCap => {
                self.cap = get_u64(&cqe.0, 0);
                Step::Enable
            }
            Step::Enable => Step::ReadStatus,
            Step::ReadStatus if cqe.dw0() & CSTS_FATAL != 0 => Step::Failed(Status::INTERNAL_ERROR),
            Step::ReadStatus if cqe.dw0() & CSTS_READY != 0 => Step::Ready,
            Step::ReadStatus => {
                self.retried = true;
                Step::ReadStatus
            }
            done => done,
        };
    }
}
