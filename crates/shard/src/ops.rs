//! Commands that wait for their commit: a slab of results and wakers, used again without allocation.

use crate::error::ShardError;
use peristyle_base::Instant;
use std::cell::RefCell;
use std::rc::Weak;
use std::task::{Poll, Waker};

/// Hears of the end of commands that no task waits for.
pub trait Told {
    /// The command that was given with `token` is over. Called by the shard while its state is borrowed: ask it nothing.
    fn command_done(&self, token: u32, result: Result<(), ShardError>, now: Instant);
}

/// Names one waiting command; the generation makes a late completion harmless.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpId {
    index: u32,
    generation: u32,
}

#[derive(Default)]
enum Waiter {
    #[default]
    Nobody,
    Task(Waker),
    /// Who is told lives as long as its commands do, unless the process ends: then nobody is told.
    Told(Weak<dyn Told>, u32),
}

struct Op {
    generation: u32,
    result: Option<Result<(), ShardError>>,
    waiter: Waiter,
    next_free: u32,
}

const NONE: u32 = u32::MAX;

pub(crate) struct Ops {
    inner: RefCell<(Vec<Op>, Option<u32>)>,
}

impl Ops {
    pub(crate) fn with_room(commands: usize) -> Ops {
        Ops { inner: RefCell::new((Vec::with_capacity(commands), None)) }
    }

    pub(crate) fn start(&self) -> OpId {
        let (ops, free) = &mut *self.inner.borrow_mut();
        match *free {
            Some(index) => {
                let op = &mut ops[index as usize];
                *free = (op.next_free != NONE).then_some(op.next_free);
                OpId { index, generation: op.generation }
            }
            None => {
                ops.push(Op { generation: 0, result: None, waiter: Waiter::Nobody, next_free: NONE });
                OpId { index: ops.len() as u32 - 1, generation: 0 }
            }
        }
    }

    /// As [`start`](Self::start); `to` is told, with `token`, instead of somebody waiting.
    pub(crate) fn start_told(&self, to: Weak<dyn Told>, token: u32) -> OpId {
        let id = self.start();
        self.inner.borrow_mut().0[id.index as usize].waiter = Waiter::Told(to, token);
        id
    }

    pub(crate) fn complete(&self, id: OpId, result: Result<(), ShardError>, now: Instant) {
        let waiter = {
            let (ops, _) = &mut *self.inner.borrow_mut();
            let op = &mut ops[id.index as usize];
            if op.generation != id.generation {
                return; // its command was dropped (the connection is gone)
            }
            assert!(op.result.is_none(), "a command completes exactly once");
            op.result = Some(result);
            std::mem::take(&mut op.waiter)
        };
        match waiter {
            Waiter::Nobody => {}
            Waiter::Task(waker) => waker.wake(),
            Waiter::Told(to, token) => {
                self.release(id);
                if let Some(to) = to.upgrade() {
                    to.command_done(token, result, now);
                }
            }
        }
    }

    fn release(&self, id: OpId) {
        let (ops, free) = &mut *self.inner.borrow_mut();
        let op = &mut ops[id.index as usize];
        if op.generation == id.generation {
            *op = Op {
                generation: op.generation.wrapping_add(1),
                result: None,
                waiter: Waiter::Nobody,
                next_free: free.unwrap_or(NONE),
            };
            *free = Some(id.index);
        }
    }

    /// Waits for the result.
    pub(crate) async fn wait(&self, id: OpId) -> Result<(), ShardError> {
        struct Release<'a>(&'a Ops, OpId);
        impl Drop for Release<'_> {
            fn drop(&mut self) {
                self.0.release(self.1);
            }
        }
        let _release = Release(self, id);
        std::future::poll_fn(|cx| {
            let (ops, _) = &mut *self.inner.borrow_mut();
            let op = &mut ops[id.index as usize];
            match op.result {
                Some(result) => Poll::Ready(result),
                None => {
                    op.waiter = Waiter::Task(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}
