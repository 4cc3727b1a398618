//! The answer to one operation: the world fills it, a task waits for it. Dropping the wait cancels nothing.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

enum State<T> {
    Waiting(Option<Waker>),
    Done(T),
    Taken,
}

pub(crate) struct Answer<T>(RefCell<State<T>>);

impl<T> Answer<T> {
    pub(crate) fn new() -> Rc<Answer<T>> {
        Rc::new(Answer(RefCell::new(State::Waiting(None))))
    }
    pub(crate) fn fill(&self, value: T) {
        let before = self.0.replace(State::Done(value));
        if let State::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }
    pub(crate) async fn wait(&self) -> T {
        poll_fn(|cx| {
            let mut state = self.0.borrow_mut();
            match &mut *state {
                State::Waiting(waker) => {
                    *waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                State::Done(_) => match std::mem::replace(&mut *state, State::Taken) {
                    State::Done(value) => Poll::Ready(value),
                    _ => unreachable!("just seen"),
                },
                State::Taken => unreachable!("one task waits, once"),
            }
        })
        .await
    }
}
