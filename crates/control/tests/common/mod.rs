//! Helpers of this crate's tests.
#![allow(dead_code)]

use peristyle_control::EmbeddedStore;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};

/// Stores in memory and inline stores never wait, so one poll is enough.
pub fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the store waited"),
    }
}

/// A folder that is removed with everything in it.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("peristyle-control-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        TempDir(path)
    }
    pub fn file(&self) -> PathBuf {
        self.0.join("state.redb")
    }
    pub fn store(&self) -> EmbeddedStore {
        EmbeddedStore::open(&self.file()).unwrap().inline()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
