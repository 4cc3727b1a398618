//! Calls between reactors of one node: a request goes out, its answer comes back to whoever waits. The waiting
//! places are used again; nothing is locked.

use peristyle_rt::{Port, ReactorId};
use std::cell::RefCell;
use std::task::{Poll, Waker};

/// What travels over the mesh.
pub enum Message<Q, R> {
    Call { id: CallId, request: Q },
    Answer { id: CallId, answer: R },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallId {
    index: u32,
    generation: u32,
}

struct Waiting<R> {
    generation: u32,
    answer: Option<R>,
    waker: Option<Waker>,
    busy: bool,
}

/// One reactor's end.
pub struct Bus<Q, R> {
    port: Port<Message<Q, R>>,
    waiting: RefCell<Vec<Waiting<R>>>,
    free: RefCell<Vec<u32>>,
}

impl<Q: Send + 'static, R: Send + 'static> Bus<Q, R> {
    pub fn new(port: Port<Message<Q, R>>) -> Bus<Q, R> {
        Bus {
            port,
            waiting: RefCell::new(Vec::with_capacity(1024)),
            free: RefCell::new(Vec::with_capacity(1024)),
        }
    }
    pub fn me(&self) -> ReactorId {
        self.port.me()
    }
    pub fn reactors(&self) -> usize {
        self.port.reactors()
    }

    /// Sends a request and waits for its answer. Dropping the future leaves the answer to nobody.
    pub async fn call(&self, to: ReactorId, request: Q) -> R {
        struct Place<'a, Q, R>(&'a Bus<Q, R>, CallId);
        impl<Q, R> Drop for Place<'_, Q, R> {
            fn drop(&mut self) {
                let mut waiting = self.0.waiting.borrow_mut();
                let place = &mut waiting[self.1.index as usize];
                *place = Waiting {
                    generation: place.generation.wrapping_add(1),
                    answer: None,
                    waker: None,
                    busy: false,
                };
                self.0.free.borrow_mut().push(self.1.index);
            }
        }
        let place = Place(self, self.take_place());
        let id = place.1;
        self.port.send(to, Message::Call { id, request }).await;
        std::future::poll_fn(|cx| {
            let place = &mut self.waiting.borrow_mut()[id.index as usize];
            match place.answer.take() {
                Some(answer) => Poll::Ready(answer),
                None => {
                    place.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn take_place(&self) -> CallId {
        let mut waiting = self.waiting.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            waiting.push(Waiting { generation: 0, answer: None, waker: None, busy: false });
            waiting.len() as u32 - 1
        });
        let place = &mut waiting[index as usize];
        place.busy = true;
        CallId { index, generation: place.generation }
    }

    /// The next request of another reactor. Answers are delivered on the way.
    pub async fn next_call(&self) -> (ReactorId, CallId, Q) {
        loop {
            match self.port.recv().await {
                (from, Message::Call { id, request }) => return (from, id, request),
                (_, Message::Answer { id, answer }) => {
                    let waker = {
                        let place = &mut self.waiting.borrow_mut()[id.index as usize];
                        if !place.busy || place.generation != id.generation {
                            continue; // nobody waits any more
                        }
                        place.answer = Some(answer);
                        place.waker.take()
                    };
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
            }
        }
    }

    pub async fn answer(&self, to: ReactorId, id: CallId, answer: R) {
        self.port.send(to, Message::Answer { id, answer }).await;
    }
}
