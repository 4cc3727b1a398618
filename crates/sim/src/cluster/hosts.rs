//! Hosts inside nodes, which use whatever is served where they are.

use super::register::Registers;
use crate::model::fill;
use peristyle_base::BLOCK_BYTES;
use peristyle_node::Volume;
use peristyle_rt::sim::WorldHandle;
use peristyle_rt::{Buf, Duration, timeout};
use peristyle_shard::ShardError;
use std::cell::RefCell;
use std::rc::Rc;

/// A host that is not answered asks for something else.
const PATIENCE: Duration = Duration::from_millis(30);
/// It looks again whether it is served.
const NOT_SERVED: Duration = Duration::from_millis(15);
/// Blocks of each volume that hosts use.
pub const BLOCKS: usize = 8;
pub const VOLUME_BLOCKS: u64 = 1024;

/// One command at a time to a node's own volume, as long as it is served there.
pub struct Host {
    pub volume: Volume,
    pub registers: Rc<RefCell<Registers>>,
    pub clock: WorldHandle,
    /// The volume's first register.
    pub first: usize,
    /// The node, for people.
    pub who: usize,
    pub rest_us: u64,
    pub writes: bool,
}

impl Host {
    pub async fn run(self) {
        while self.volume.ensure_layer(VOLUME_BLOCKS).await.is_err() {
            peristyle_rt::sleep(Duration::from_millis(20)).await;
        }
        loop {
            let rest = peristyle_rt::random_below(2 * self.rest_us + 1);
            peristyle_rt::sleep(Duration::from_micros(100 + rest)).await;
            let block = peristyle_rt::random_below(BLOCKS as u64) as usize;
            // Whoever writes reads first: a host that is not served must not keep others from writing.
            let served = self.read(block).await;
            if served && self.writes {
                self.write(block).await;
            }
        }
    }

    async fn read(&self, block: usize) -> bool {
        let (began, offset) = (self.clock.now_nanos(), (block * BLOCK_BYTES) as u64);
        let answer = timeout(PATIENCE, self.volume.read(offset, BLOCK_BYTES as u64)).await;
        let Some(Ok(data)) = answer else {
            peristyle_rt::sleep(NOT_SERVED).await;
            return false;
        };
        let data: Vec<u8> = data.to_vec();
        let salt = u64::from_le_bytes(data[..8].try_into().expect("8 bytes"));
        assert!(data == content(salt), "a block is one write's, and whole");
        self.registers.borrow_mut().end_read(
            began,
            self.clock.now_nanos(),
            self.first + block,
            salt,
            self.who,
        );
        true
    }

    async fn write(&self, block: usize) {
        let register = self.first + block;
        let Some(salt) = self.registers.borrow_mut().begin_write(register) else { return };
        let mut ended = Unanswered { host: self, register, salt, over: false };
        let mut buf = Buf::alloc(BLOCK_BYTES).await;
        buf.copy_from_slice(&content(salt));
        let answer = self.volume.write((block * BLOCK_BYTES) as u64, buf.freeze()).await;
        assert_ne!(answer, Err(ShardError::NoSpace), "a pool of this size does not fill");
        ended.end(answer.is_ok());
    }
}

/// A write of which nobody has said yet how it ended. Whoever is killed never does.
struct Unanswered<'a> {
    host: &'a Host,
    register: usize,
    salt: u64,
    over: bool,
}

impl Unanswered<'_> {
    fn end(&mut self, acknowledged: bool) {
        self.over = true;
        let now = self.host.clock.now_nanos();
        self.host.registers.borrow_mut().end_write(now, self.register, self.salt, acknowledged);
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.end(false);
        }
    }
}

/// A block names its writer's salt and is full of it; 0: it was never written.
pub(crate) fn content(salt: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    if salt != 0 {
        fill(salt, 0, &mut block);
        block[..8].copy_from_slice(&salt.to_le_bytes());
    }
    block
}
