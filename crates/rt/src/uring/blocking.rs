//! A few threads for what blocks: an embedded database's commit, opening a device. What may block for ever has a
//! thread of its own ([`Lane`]).

use std::any::Any;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, OnceLock, mpsc};
use std::task::{Poll, Waker};

const THREADS: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct Jobs {
    queue: Mutex<VecDeque<Job>>,
    added: Condvar,
}

static JOBS: OnceLock<&'static Jobs> = OnceLock::new();

/// Starts the threads, unless they run already. Called before a thread is pinned: they inherit its cores.
pub(super) fn start() -> &'static Jobs {
    JOBS.get_or_init(|| {
        let jobs: &'static Jobs = Box::leak(Box::default());
        for i in 0..THREADS {
            let name = format!("blocking-{i}");
            std::thread::Builder::new().name(name).spawn(|| work(jobs)).expect("a thread can be started");
        }
        jobs
    })
}

fn work(jobs: &Jobs) {
    loop {
        let job = {
            let mut queue = jobs.queue.lock().expect("jobs run outside of the lock");
            loop {
                match queue.pop_front() {
                    Some(job) => break job,
                    None => queue = jobs.added.wait(queue).expect("jobs run outside of the lock"),
                }
            }
        };
        job();
    }
}

enum Outcome<T> {
    Running(Option<Waker>),
    Done(Result<T, Box<dyn Any + Send>>),
    Taken,
}

/// Runs `f` on one of the threads. A dropped future does not stop it; its result is dropped then. A panic
/// inside goes on in the task that waits.
pub(super) async fn run<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let jobs = start();
    let push = |job| {
        jobs.queue.lock().expect("jobs run outside of the lock").push_back(job);
        jobs.added.notify_one();
    };
    run_by(push, f).await
}

/// A thread that does one thing after the other for one device, so that a device that hangs holds up nobody else.
pub(super) struct Lane(mpsc::Sender<Job>);

impl Lane {
    /// Called where [`run`] runs things: the thread inherits what those threads may use, all cores.
    pub(super) fn start(name: &str) -> std::io::Result<Lane> {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || jobs.into_iter().for_each(|job| job()))?;
        Ok(Lane(sender))
    }

    /// As [`run`], on this thread.
    pub(super) async fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        run_by(|job| self.0.send(job).expect("it lives as long as its lane"), f).await
    }
}

async fn run_by<T: Send + 'static>(push: impl FnOnce(Job), f: impl FnOnce() -> T + Send + 'static) -> T {
    let outcome = Arc::new(Mutex::new(Outcome::<T>::Running(None)));
    let theirs = outcome.clone();
    let job = Box::new(move || {
        let result = catch_unwind(AssertUnwindSafe(f));
        let before = {
            let mut outcome = theirs.lock().expect("no panic while held");
            std::mem::replace(&mut *outcome, Outcome::Done(result))
        };
        if let Outcome::Running(Some(waker)) = before {
            waker.wake();
        }
    });
    push(job);
    let result = poll_fn(|cx| {
        let mut outcome = outcome.lock().expect("no panic while held");
        match &mut *outcome {
            Outcome::Running(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => match std::mem::replace(&mut *outcome, Outcome::Taken) {
                Outcome::Done(result) => Poll::Ready(result),
                _ => unreachable!("the result is taken once"),
            },
        }
    })
    .await;
    result.unwrap_or_else(|panic| resume_unwind(panic))
}
