//! The io_uring backend: one thread per reactor.

use crate::buf::{Buf, IoVec, View};
use crate::device::{DeviceInfo, IoError, WriteCache};
use crate::net::{Addr, NetError};
use crate::reactor::Inbox;
use peristyle_base::Instant;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

pub struct Driver;
impl Driver {
    pub(crate) fn now(&self) -> Instant {
        unimplemented!()
    }
    pub(crate) fn wall_nanos(&self) -> u64 {
        unimplemented!()
    }
    pub(crate) fn fill_random(&self, _bytes: &mut [u8]) {
        unimplemented!()
    }
    pub(crate) async fn blocking<T: Send + 'static>(&self, _f: impl FnOnce() -> T + Send + 'static) -> T {
        unimplemented!()
    }
    pub(crate) fn inbox(&self) -> Arc<dyn Inbox> {
        unimplemented!()
    }
}
pub struct File;
impl File {
    pub(crate) async fn open(
        _d: Rc<Driver>,
        _path: &Path,
        _create: Option<u64>,
        _cache: WriteCache,
    ) -> Result<(File, DeviceInfo), IoError> {
        unimplemented!()
    }
    pub(crate) async fn read(&self, _offset: u64, _buf: Buf) -> (Result<(), IoError>, Buf) {
        unimplemented!()
    }
    pub(crate) async fn write(&self, _offset: u64, _iov: IoVec, _durable: bool) -> Result<(), IoError> {
        unimplemented!()
    }
    pub(crate) async fn flush(&self) -> Result<(), IoError> {
        unimplemented!()
    }
    pub(crate) async fn write_zeroes(&self, _offset: u64, _bytes: u64) -> Result<(), IoError> {
        unimplemented!()
    }
}
pub struct Listener;
impl Listener {
    pub(crate) fn bind(_d: Rc<Driver>, _addr: &Addr, _shared: bool) -> Result<Listener, NetError> {
        unimplemented!()
    }
    pub(crate) async fn accept(&self) -> Result<Stream, NetError> {
        unimplemented!()
    }
    pub(crate) fn local_addr(&self) -> Addr {
        unimplemented!()
    }
}
pub struct Stream;
impl Stream {
    pub(crate) async fn connect(_d: Rc<Driver>, _addr: &Addr) -> Result<Stream, NetError> {
        unimplemented!()
    }
    pub(crate) fn split(self) -> (Reader, Writer) {
        unimplemented!()
    }
}
pub struct Reader;
impl Reader {
    pub(crate) async fn recv(&mut self) -> Result<View, NetError> {
        unimplemented!()
    }
    pub(crate) async fn recv_exact(&mut self, _buf: Buf) -> (Result<(), NetError>, Buf) {
        unimplemented!()
    }
}
pub struct Writer;
impl Writer {
    pub(crate) async fn send(&mut self, _iov: IoVec) -> Result<(), NetError> {
        unimplemented!()
    }
    pub(crate) fn shutdown(&self) {
        unimplemented!()
    }
}
