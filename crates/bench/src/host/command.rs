//! Commands as futures.

use super::tasks::{Data, Wait};
use super::{HostError, Queue};
use peristyle_nvme::host;
use peristyle_nvme::wire::{Cqe, Fuse, Sqe, Status, opcode};
use peristyle_rt::{Buf, IoVec, View};

/// Data of a command.
pub enum Payload {
    None,
    ToTarget(View),
    /// In pieces, sent as they are.
    PiecesToTarget(IoVec),
    /// Filled by the target.
    FromTarget(Buf),
}

/// What the target answered.
pub struct Answer {
    pub cqe: Cqe,
    /// The buffer of a command that takes data, and how much of it the target filled.
    pub data: Option<Buf>,
    pub received: u32,
}

impl Answer {
    pub fn status(&self) -> Status {
        self.cqe.status()
    }
    fn done(self) -> Result<Answer, HostError> {
        if self.status().is_success() { Ok(self) } else { Err(HostError::Status(self.status())) }
    }
}

async fn answer(wait: Wait<'_>) -> Result<Answer, HostError> {
    let (cqe, received, data) = std::future::poll_fn(|cx| wait.poll(cx)).await?;
    let data = match data {
        Data::In(buf) => Some(buf),
        _ => None,
    };
    Ok(Answer { cqe, data, received })
}

fn lba_command(code: u8, nsid: u32, slba: u64, blocks: u32) -> Sqe {
    let mut sqe = Sqe::new(code, Default::default());
    sqe.set_nsid(nsid);
    sqe.set_lbas(slba, blocks);
    sqe
}

impl Queue {
    /// Any command. CID and SGL are filled in; the status is not looked at. Waits while the queue is full.
    pub async fn command(&self, sqe: Sqe, payload: Payload) -> Result<Answer, HostError> {
        let wait = self.submit(sqe, payload).await?;
        answer(wait).await
    }

    async fn submit(&self, sqe: Sqe, payload: Payload) -> Result<Wait<'_>, HostError> {
        let (size, data) = match payload {
            Payload::None => (host::Data::None, Data::None),
            Payload::ToTarget(view) => (host::Data::ToTarget(view.len() as u32), Data::Out(view.into())),
            Payload::PiecesToTarget(pieces) => {
                (host::Data::ToTarget(pieces.bytes() as u32), Data::Out(pieces))
            }
            Payload::FromTarget(buf) => (host::Data::FromTarget(buf.len() as u32), Data::In(buf)),
        };
        loop {
            if let Some(reason) = self.0.reason.get() {
                return Err(HostError::Closed(reason));
            }
            let submitted = self.0.qpair.borrow_mut().submit(sqe, size);
            if let Ok(tag) = submitted {
                let place = self.0.places.borrow_mut().begin(tag, data);
                self.0.wake_sender();
                return Ok(Wait::new(&self.0, place));
            }
            self.0.freed.notified().await;
        }
    }

    /// Fills `buf`, a whole number of blocks, from `slba` on.
    pub async fn read(&self, nsid: u32, slba: u64, blocks: u32, buf: Buf) -> Result<Buf, HostError> {
        let sqe = lba_command(opcode::nvm::READ, nsid, slba, blocks);
        let answer = self.command(sqe, Payload::FromTarget(buf)).await?.done()?;
        Ok(answer.data.expect("a command with a buffer keeps it"))
    }
    pub async fn write(&self, nsid: u32, slba: u64, blocks: u32, data: View) -> Result<(), HostError> {
        let sqe = lba_command(opcode::nvm::WRITE, nsid, slba, blocks);
        self.command(sqe, Payload::ToTarget(data)).await?.done().map(|_| ())
    }
    pub async fn compare(&self, nsid: u32, slba: u64, blocks: u32, data: View) -> Result<(), HostError> {
        let sqe = lba_command(opcode::nvm::COMPARE, nsid, slba, blocks);
        self.command(sqe, Payload::ToTarget(data)).await?.done().map(|_| ())
    }
    pub async fn write_zeroes(&self, nsid: u32, slba: u64, blocks: u32) -> Result<(), HostError> {
        let sqe = lba_command(opcode::nvm::WRITE_ZEROES, nsid, slba, blocks);
        self.command(sqe, Payload::None).await?.done().map(|_| ())
    }
    pub async fn verify(&self, nsid: u32, slba: u64, blocks: u32) -> Result<(), HostError> {
        let sqe = lba_command(opcode::nvm::VERIFY, nsid, slba, blocks);
        self.command(sqe, Payload::None).await?.done().map(|_| ())
    }
    pub async fn flush(&self, nsid: u32) -> Result<(), HostError> {
        let mut sqe = Sqe::new(opcode::nvm::FLUSH, Default::default());
        sqe.set_nsid(nsid);
        self.command(sqe, Payload::None).await?.done().map(|_| ())
    }
    /// Deallocates ranges (first block, blocks): at most 256.
    pub async fn deallocate(&self, nsid: u32, ranges: &[(u64, u32)]) -> Result<(), HostError> {
        let mut sqe = Sqe::new(opcode::nvm::DATASET_MANAGEMENT, Default::default());
        sqe.set_nsid(nsid);
        sqe.set_cdw(10, ranges.len() as u32 - 1);
        sqe.set_cdw(11, 4);
        let mut buf = Buf::zeroed(ranges.len() * 16).await;
        for (definition, &(slba, blocks)) in buf.chunks_exact_mut(16).zip(ranges) {
            definition[4..8].copy_from_slice(&blocks.to_le_bytes());
            definition[8..16].copy_from_slice(&slba.to_le_bytes());
        }
        self.command(sqe, Payload::ToTarget(buf.freeze())).await?.done().map(|_| ())
    }
    /// Compare and Write as one fused pair; the statuses of both.
    pub async fn compare_and_write(
        &self,
        nsid: u32,
        slba: u64,
        blocks: u32,
        expected: View,
        data: View,
    ) -> Result<(Status, Status), HostError> {
        let mut compare = lba_command(opcode::nvm::COMPARE, nsid, slba, blocks);
        compare.set_fuse(Fuse::First);
        let mut write = lba_command(opcode::nvm::WRITE, nsid, slba, blocks);
        write.set_fuse(Fuse::Second);
        // The halves must stand side by side in the queue: room for both first.
        let room = self.0.in_flight_max.saturating_sub(2);
        self.0.freed.wait_until(|| self.in_flight() <= room || !self.is_open()).await;
        let first = self.submit(compare, Payload::ToTarget(expected)).await?;
        let second = self.submit(write, Payload::ToTarget(data)).await?;
        let (first, second) = (answer(first).await?, answer(second).await?);
        Ok((first.status(), second.status()))
    }

    /// Identify: CNS and namespace.
    pub async fn identify(&self, cns: u8, nsid: u32) -> Result<Buf, HostError> {
        let mut sqe = Sqe::new(opcode::admin::IDENTIFY, Default::default());
        sqe.set_nsid(nsid);
        sqe.set_cdw(10, u32::from(cns));
        let answer = self.command(sqe, Payload::FromTarget(Buf::alloc(4096).await)).await?.done()?;
        Ok(answer.data.expect("a command with a buffer keeps it"))
    }
    /// Get Log Page from its start.
    pub async fn log_page(&self, lid: u8, bytes: u32) -> Result<Buf, HostError> {
        let mut sqe = Sqe::new(opcode::admin::GET_LOG_PAGE, Default::default());
        sqe.set_nsid(u32::MAX);
        sqe.set_cdw(10, u32::from(lid) | (bytes / 4 - 1) << 16);
        sqe.set_cdw(11, (bytes / 4 - 1) >> 16);
        let payload = Payload::FromTarget(Buf::alloc(bytes as usize).await);
        let answer = self.command(sqe, payload).await?.done()?;
        Ok(answer.data.expect("a command with a buffer keeps it"))
    }
    /// Set Features: feature and its value in dword 11.
    pub async fn set_feature(&self, fid: u8, value: u32) -> Result<(), HostError> {
        let mut sqe = Sqe::new(opcode::admin::SET_FEATURES, Default::default());
        sqe.set_cdw(10, u32::from(fid));
        sqe.set_cdw(11, value);
        self.command(sqe, Payload::None).await?.done().map(|_| ())
    }
    /// Waits for the next asynchronous event: dword 0 of its completion.
    pub async fn next_event(&self) -> Result<u32, HostError> {
        let sqe = Sqe::new(opcode::admin::ASYNC_EVENT_REQUEST, Default::default());
        Ok(self.command(sqe, Payload::None).await?.done()?.cqe.dw0())
    }
}
