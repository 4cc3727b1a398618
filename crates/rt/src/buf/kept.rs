//! Buffers that are kept back, so that work which gives memory back when it ends can always be done.
//!
//! Whoever holds buffers while waiting for more may wait for ever when all wait. So work of that kind asks for all
//! that it needs as one buffer ([`Buf::split_to`] cuts it), and has something kept back for the case that the pool is empty:
//! what is kept there is used by work that waits for no other memory, and comes back.

use super::{Buf, CLASS_BYTES, Pool};
use crate::reactor::Reactor;
use std::sync::Arc;

/// Chunks that are kept back for one purpose.
pub(super) struct Kept {
    /// `None`: its user shares with nobody.
    purpose: Option<&'static str>,
    users: usize,
    pub(super) free: Vec<u32>,
}

/// Some buffers of a reactor's pool, kept back for one purpose, whose users share them.
pub struct KeptBufs {
    pool: Arc<Pool>,
    number: u32,
    bytes: usize,
}

impl KeptBufs {
    /// Keeps back `count` buffers of at least `bytes`; waits until the pool has them.
    /// # Panics — when the pool was not given so many: memory is planned at start.
    pub async fn take(count: usize, bytes: usize) -> KeptBufs {
        Self::take_for(None, count, bytes).await
    }

    /// As [`take`](Self::take), unless this reactor has them for the purpose already: then all users share. Who asks for
    /// the same purpose asks for the same sizes.
    pub async fn share(purpose: &'static str, count: usize, bytes: usize) -> KeptBufs {
        Self::take_for(Some(purpose), count, bytes).await
    }

    /// As [`share`](Self::share), without waiting: `None` when the pool does not have them all now.
    pub fn try_share(purpose: &'static str, count: usize, bytes: usize) -> Option<KeptBufs> {
        let pool = Reactor::current(|reactor| reactor.pool.clone());
        if let Some(number) = pool.join_kept(Some(purpose)) {
            return Some(KeptBufs { pool, number, bytes });
        }
        let bufs: Option<Vec<Buf>> = (0..count).map(|_| pool.alloc(bytes)).collect();
        let number = pool.open_kept(Some(purpose), &bufs?);
        Some(KeptBufs { pool, number, bytes })
    }

    async fn take_for(purpose: Option<&'static str>, count: usize, bytes: usize) -> KeptBufs {
        let pool = Reactor::current(|reactor| reactor.pool.clone());
        if let Some(number) = pool.join_kept(purpose) {
            return KeptBufs { pool, number, bytes };
        }
        let fitting = pool.config().counts.into_iter().zip(CLASS_BYTES).filter(|(_, size)| *size >= bytes);
        let most: usize = fitting.take(3).map(|(count, _)| count).sum();
        assert!(most > count, "{count} buffers of {bytes} bytes are to be kept back, of {most}");
        let mut bufs = Vec::with_capacity(count);
        while bufs.len() < count {
            bufs.push(Buf::alloc(bytes).await);
        }
        // Another user may have come while we waited.
        let number = pool.join_kept(purpose).unwrap_or_else(|| pool.open_kept(purpose, &bufs));
        KeptBufs { pool, number, bytes }
    }

    /// A buffer from the pool or, when it is empty, one of those kept back; waits for whichever comes first. More bytes
    /// than are kept back can come from the pool only.
    pub async fn alloc(&self, bytes: usize) -> Buf {
        loop {
            match self.pool.alloc(bytes).or_else(|| self.try_take(bytes)) {
                Some(buf) => return buf,
                None => self.changed().await,
            }
        }
    }

    /// As [`alloc`](Self::alloc), with fewer bytes when the pool is empty and no more are kept back.
    pub async fn alloc_up_to(&self, bytes: usize) -> Buf {
        loop {
            match self.pool.alloc(bytes).or_else(|| self.try_take(bytes.min(self.bytes))) {
                Some(buf) => return buf,
                None => self.changed().await,
            }
        }
    }

    /// One of the buffers that are kept back.
    pub fn try_take(&self, bytes: usize) -> Option<Buf> {
        (bytes <= self.bytes).then(|| self.pool.alloc_kept(self.number, bytes)).flatten()
    }

    /// Waits until a buffer has come back, to the pool or to be kept.
    pub async fn changed(&self) {
        self.pool.starved().await;
    }
}

impl Drop for KeptBufs {
    fn drop(&mut self) {
        self.pool.leave_kept(self.number);
    }
}

impl Pool {
    fn alloc_kept(self: &Arc<Self>, number: u32, bytes: usize) -> Option<Buf> {
        let index = self.kept.borrow_mut()[number as usize - 1].free.pop()?;
        Some(self.hand_out(index, bytes))
    }

    /// The number of what is kept back for this purpose.
    fn join_kept(&self, purpose: Option<&'static str>) -> Option<u32> {
        let mut all = self.kept.borrow_mut();
        let same = |kept: &Kept| kept.users > 0 && purpose.is_some() && kept.purpose == purpose;
        let at = all.iter().position(same)?;
        all[at].users += 1;
        Some(at as u32 + 1)
    }

    /// From now on these come back here when they are dropped.
    fn open_kept(&self, purpose: Option<&'static str>, bufs: &[Buf]) -> u32 {
        let mut all = self.kept.borrow_mut();
        let new = Kept { purpose, users: 1, free: Vec::with_capacity(bufs.len()) };
        let number = match all.iter().position(|kept| kept.users == 0) {
            Some(at) => {
                all[at] = new;
                at as u32 + 1
            }
            None => {
                all.push(new);
                all.len() as u32
            }
        };
        // SAFETY: a buffer holds a reference, so its chunk is alive.
        bufs.iter().for_each(|buf| unsafe { buf.chunk.as_ref() }.kept.set(number));
        number
    }

    /// What the last user leaves, in use or not, goes to everybody.
    fn leave_kept(&self, number: u32) {
        let free = {
            let kept = &mut self.kept.borrow_mut()[number as usize - 1];
            kept.users -= 1;
            if kept.users > 0 {
                return;
            }
            std::mem::take(&mut kept.free)
        };
        self.chunks().iter().filter(|c| c.kept.get() == number).for_each(|c| c.kept.set(0));
        free.into_iter().for_each(|index| self.put(index));
        self.notify();
    }

    /// Bytes that are kept back for all purposes.
    pub(crate) fn kept_bytes(&self) -> usize {
        let kept = self.chunks().iter().filter(|c| c.kept.get() != 0);
        kept.map(|c| CLASS_BYTES[c.class as usize]).sum()
    }
}
