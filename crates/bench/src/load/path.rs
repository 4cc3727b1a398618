//! A connection and a volume behind it.

use crate::host::{HostError, Payload, Queue};
use crate::session::Namespace;
use peristyle_nvme::wire::Status;
use peristyle_rt::{Buf, Instant, View, join_all};

/// Requests of more than the target takes in one command go as several, all at once, as a host's block layer does it.
#[derive(Clone)]
pub(super) struct Path {
    pub queue: Queue,
    pub namespace: Namespace,
    /// Bytes of a command, at most.
    pub part_bytes: u32,
}

/// What became of a read.
pub(super) struct Read {
    /// The first bad one, if there is one.
    pub status: Status,
    /// When the last answer came, before anything was compared.
    pub ended: Instant,
    pub is_right: bool,
    /// The buffer of a read of one command, for the next one.
    pub buf: Option<Buf>,
}

impl Path {
    /// Reads so many bytes from `offset` on, into `buf` if that is as large; `check` sees each part that was read, and where
    /// it belongs.
    pub async fn read(
        &self,
        (offset, bytes): (u64, u32),
        buf: Option<Buf>,
        check: impl Fn(u64, &[u8]) -> bool,
    ) -> Result<Read, HostError> {
        if bytes <= self.part_bytes {
            let buf = match buf.filter(|buf| buf.len() == bytes as usize) {
                Some(buf) => buf,
                None => Buf::alloc(bytes as usize).await,
            };
            let (status, buf) = self.read_part(offset, buf).await?;
            let ended = peristyle_rt::now();
            let is_right = !status.is_success() || check(offset, &buf);
            return Ok(Read { status, ended, is_right, buf: Some(buf) });
        }
        let parts = (0..bytes).step_by(self.part_bytes as usize).map(|from| async move {
            let at = offset + u64::from(from);
            let part = Buf::alloc((bytes - from).min(self.part_bytes) as usize).await;
            (at, self.read_part(at, part).await)
        });
        let results = join_all(parts).await;
        let mut read =
            Read { status: Status::SUCCESS, ended: peristyle_rt::now(), is_right: true, buf: None };
        for (at, result) in results {
            let (status, part) = result?;
            read.is_right &= !status.is_success() || check(at, &part);
            read.status = first_bad(read.status, status);
        }
        Ok(read)
    }

    async fn read_part(&self, offset: u64, buf: Buf) -> Result<(Status, Buf), HostError> {
        let sqe = self.namespace.read(offset, buf.len() as u32);
        let answer = self.queue.command(sqe, Payload::FromTarget(buf)).await?;
        Ok((answer.status(), answer.data.expect("a command with a buffer keeps it")))
    }

    pub async fn write(&self, offset: u64, data: View) -> Result<Status, HostError> {
        if data.len() <= self.part_bytes as usize {
            return self.write_part(offset, data).await;
        }
        let step = self.part_bytes as usize;
        let parts = (0..data.len()).step_by(step).map(|at| {
            let part = data.slice(at..(at + step).min(data.len()));
            self.write_part(offset + at as u64, part)
        });
        let results = join_all(parts.collect::<Vec<_>>()).await;
        results.into_iter().try_fold(Status::SUCCESS, |status, result| Ok(first_bad(status, result?)))
    }

    async fn write_part(&self, offset: u64, data: View) -> Result<Status, HostError> {
        let sqe = self.namespace.write(offset, data.len() as u32);
        Ok(self.queue.command(sqe, Payload::ToTarget(data)).await?.status())
    }
}

fn first_bad(before: Status, next: Status) -> Status {
    if before.is_success() { next } else { before }
}
