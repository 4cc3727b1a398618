//! Device operations that outlive whoever asked for them.
//!
//! A caller may give up waiting (an append that takes too long is abandoned), but what the device does to a slot must
//! be known until it has answered: fence, seal and free are confirmed only when nothing is in flight. So each
//! operation runs in a task of its own, and the caller waits for the task's answer in a cell of this slab. Cells are
//! used again: nothing is allocated once the slab has grown to the number of operations that are in flight at once.

use peristyle_rt::IoError;
use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

#[derive(Default)]
struct Cell {
    answer: Option<Result<(), IoError>>,
    waker: Option<Waker>,
    /// Task and caller: the cell is free when both have left.
    holders: u8,
}

#[derive(Default)]
pub(crate) struct Ops {
    cells: RefCell<Vec<Cell>>,
    free: RefCell<Vec<u32>>,
}

impl Ops {
    pub fn with_capacity(n: usize) -> Ops {
        let cells = (0..n).map(|_| Cell::default()).collect();
        Ops { cells: RefCell::new(cells), free: RefCell::new((0..n as u32).rev().collect()) }
    }

    /// A cell for one operation, held by its task and by its caller.
    pub fn begin(&self) -> u32 {
        let mut cells = self.cells.borrow_mut();
        let id = self.free.borrow_mut().pop().unwrap_or_else(|| {
            cells.push(Cell::default());
            cells.len() as u32 - 1
        });
        cells[id as usize] = Cell { holders: 2, ..Cell::default() };
        id
    }

    fn leave(&self, id: u32) {
        let cell = &mut self.cells.borrow_mut()[id as usize];
        cell.holders -= 1;
        if cell.holders == 0 {
            self.free.borrow_mut().push(id);
        }
    }

    /// The task's last act.
    pub fn finish(&self, id: u32, answer: Result<(), IoError>) {
        let waker = {
            let cell = &mut self.cells.borrow_mut()[id as usize];
            cell.answer = Some(answer);
            cell.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        self.leave(id);
    }

    /// The caller's side. Dropping it leaves the operation running.
    pub async fn wait(&self, id: u32) -> Result<(), IoError> {
        struct Leave<'a>(&'a Ops, u32);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.leave(self.1);
            }
        }
        let _leave = Leave(self, id);
        poll_fn(|cx| {
            let cell = &mut self.cells.borrow_mut()[id as usize];
            if let Some(answer) = cell.answer {
                return Poll::Ready(answer);
            }
            match &mut cell.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            Poll::Pending
        })
        .await
    }
}
