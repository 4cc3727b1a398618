//! Volumes as the front ends use them: reads and writes of byte ranges, wherever the shard lives.

use crate::LocalBoxed;
use crate::message::{Reply, Request};
use crate::reactor::Node;
use crate::target::Way;
use peristyle_base::{LayerId, ShardId};
use peristyle_rt::{IoVec, ReactorId, View};
use peristyle_shard::map::Run;
use peristyle_shard::{ResizeError, ShardError, Usage};
use std::cell::Cell;
use std::rc::Rc;

/// What a volume is, apart from its data. Plain values: travels between reactors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    pub name: String,
    /// Namespace ID.
    pub nsid: u32,
    pub uuid: peristyle_base::Uuid,
    pub nguid: [u8; 16],
    pub bytes: u64,
    /// 4096 or 512.
    pub lba_bytes: u32,
    pub shard: ShardId,
    pub layer: LayerId,
    /// A snapshot: hosts are told that it cannot be written.
    pub read_only: bool,
}

/// One operation on a layer. Offsets and lengths are bytes, multiples of 512.
pub enum VolumeRequest {
    Read {
        offset: u64,
        bytes: u64,
    },
    Write {
        offset: u64,
        data: View,
    },
    Zero {
        offset: u64,
        bytes: u64,
    },
    Compare {
        offset: u64,
        data: View,
    },
    CompareAndWrite {
        offset: u64,
        expected: View,
        data: View,
    },
    Verify {
        offset: u64,
        bytes: u64,
    },
    /// Everything acknowledged is durable already: succeeds unless the shard has stopped.
    Flush,
    /// Which parts of a range hold data.
    Allocation {
        offset: u64,
        bytes: u64,
        runs_max: usize,
    },
    EnsureLayer {
        blocks: u64,
    },
    ResizeLayer {
        blocks: u64,
        discard: bool,
    },
    DropLayer,
    /// Of this volume and others of its shard: each volume's layer, and the number that its snapshot gets.
    Snapshot {
        group: Vec<(LayerId, LayerId)>,
    },
    /// Makes the volume on a snapshot.
    CloneOf {
        snapshot: LayerId,
    },
    RollBack {
        snapshot: LayerId,
    },
    Flatten,
    Usage,
}

pub enum VolumeAnswer {
    Data(Result<IoVec, ShardError>),
    Done(Result<(), ShardError>),
    Allocation(Result<Vec<Run>, ShardError>),
    Resized(Result<(), ResizeError>),
    /// `None`: there is no such volume.
    Usage(Option<Usage>),
}

impl VolumeAnswer {
    pub(crate) fn done(self) -> Result<(), ShardError> {
        match self {
            VolumeAnswer::Done(result) => result,
            VolumeAnswer::Data(result) => result.map(|_| ()),
            VolumeAnswer::Allocation(result) => result.map(|_| ()),
            // The answer to another question.
            VolumeAnswer::Resized(_) | VolumeAnswer::Usage(_) => Err(ShardError::Stopped),
        }
    }
    pub(crate) fn data(self) -> Result<IoVec, ShardError> {
        match self {
            VolumeAnswer::Data(result) => result,
            other => Err(failure(other)),
        }
    }
    pub(crate) fn runs(self) -> Result<Vec<Run>, ShardError> {
        match self {
            VolumeAnswer::Allocation(result) => result,
            other => Err(failure(other)),
        }
    }
}

/// A volume's data, as one reactor reaches it. Cheap to clone.
pub struct Volume {
    node: Rc<Node>,
    shard: ShardId,
    layer: LayerId,
    home: ReactorId,
    way: Option<Way>,
    is_unknown: Cell<bool>,
}

impl Clone for Volume {
    fn clone(&self) -> Self {
        Volume::new(self.node.clone(), self.shard, self.layer, self.home).by(self.way)
    }
}

impl Volume {
    pub(crate) fn new(node: Rc<Node>, shard: ShardId, layer: LayerId, home: ReactorId) -> Volume {
        Volume { node, shard, layer, home, way: None, is_unknown: Cell::new(false) }
    }

    /// Reached over another node, if there is a way.
    pub(crate) fn by(mut self, way: Option<Way>) -> Volume {
        self.way = way;
        self
    }

    /// Something that was handed on to another node may have been done, or may be done yet.
    pub(crate) fn is_unknown(&self) -> bool {
        self.is_unknown.get()
    }

    /// For those who serve hosts: takes no memory. Others use the methods below.
    pub(crate) async fn ask(&self, request: VolumeRequest) -> VolumeAnswer {
        if let Some(way) = self.way {
            let returned = self.node.hand_on((self.shard, self.layer), way, request).await;
            self.is_unknown.set(self.is_unknown.get() || returned.is_unknown);
            return returned.answer;
        }
        if self.home == self.node.id() {
            return self.node.serve_volume(self.shard, self.layer, request).await;
        }
        let request = Request::Volume { shard: self.shard, layer: self.layer, request };
        match self.node.bus().call(self.home, request).await {
            Reply::Volume(answer) => answer,
            _ => VolumeAnswer::Done(Err(ShardError::Stopped)),
        }
    }

    fn asked(&self, request: VolumeRequest) -> LocalBoxed<'_, VolumeAnswer> {
        Box::pin(self.ask(request))
    }

    /// At most 512 KiB. The pieces are verified and may be sent as they are.
    pub async fn read(&self, offset: u64, bytes: u64) -> Result<IoVec, ShardError> {
        self.asked(VolumeRequest::Read { offset, bytes }).await.data()
    }
    /// Which parts of a range hold data: see [`peristyle_shard::Shard::allocation`].
    pub async fn allocation(&self, offset: u64, bytes: u64, runs_max: usize) -> Result<Vec<Run>, ShardError> {
        self.asked(VolumeRequest::Allocation { offset, bytes, runs_max }).await.runs()
    }
    /// At most 512 KiB; atomic, and durable when it returns.
    pub async fn write(&self, offset: u64, data: View) -> Result<(), ShardError> {
        self.asked(VolumeRequest::Write { offset, data }).await.done()
    }
    pub async fn zero(&self, offset: u64, bytes: u64) -> Result<(), ShardError> {
        self.asked(VolumeRequest::Zero { offset, bytes }).await.done()
    }
    pub async fn compare(&self, offset: u64, data: View) -> Result<(), ShardError> {
        self.asked(VolumeRequest::Compare { offset, data }).await.done()
    }
    pub async fn compare_and_write(&self, offset: u64, expected: View, data: View) -> Result<(), ShardError> {
        self.asked(VolumeRequest::CompareAndWrite { offset, expected, data }).await.done()
    }
    pub async fn verify(&self, offset: u64, bytes: u64) -> Result<(), ShardError> {
        self.asked(VolumeRequest::Verify { offset, bytes }).await.done()
    }
    pub async fn flush(&self) -> Result<(), ShardError> {
        self.asked(VolumeRequest::Flush).await.done()
    }
    pub async fn ensure_layer(&self, blocks: u64) -> Result<(), ShardError> {
        self.asked(VolumeRequest::EnsureLayer { blocks }).await.done()
    }
    /// Gives the volume's data another size: see [`peristyle_shard::Shard::resize_layer`]. Hosts hear of it by
    /// [`Node::add_volume`].
    pub async fn resize_layer(&self, blocks: u64, discard: bool) -> Result<(), ResizeError> {
        match self.asked(VolumeRequest::ResizeLayer { blocks, discard }).await {
            VolumeAnswer::Resized(result) => result,
            other => Err(failure(other).into()),
        }
    }
    /// Makes the data as large as its volume is said to be, whatever was cut short at the last time. What lies behind
    /// the end stays, for nobody says that it may go, and is an error.
    pub async fn settle_layer(&self, blocks: u64) -> Result<(), ResizeError> {
        match self.ensure_layer(blocks).await {
            Err(ShardError::OutOfRange) => self.resize_layer(blocks, false).await,
            done => Ok(done?),
        }
    }
    /// Snapshots of volumes of one shard at one point: see [`peristyle_shard::Shard::snapshot`].
    pub async fn snapshot(&self, group: Vec<(LayerId, LayerId)>) -> Result<(), ShardError> {
        self.asked(VolumeRequest::Snapshot { group }).await.done()
    }
    pub async fn clone_of(&self, snapshot: LayerId) -> Result<(), ShardError> {
        self.asked(VolumeRequest::CloneOf { snapshot }).await.done()
    }
    pub async fn roll_back(&self, snapshot: LayerId) -> Result<(), ShardError> {
        self.asked(VolumeRequest::RollBack { snapshot }).await.done()
    }
    pub async fn flatten(&self) -> Result<(), ShardError> {
        self.asked(VolumeRequest::Flatten).await.done()
    }
    /// What the volume takes; `None` when its shard does not know it.
    pub async fn usage(&self) -> Result<Option<Usage>, ShardError> {
        match self.asked(VolumeRequest::Usage).await {
            VolumeAnswer::Usage(usage) => Ok(usage),
            other => Err(failure(other)),
        }
    }
    pub async fn drop_layer(&self) -> Result<(), ShardError> {
        self.asked(VolumeRequest::DropLayer).await.done()
    }
}

/// Why a question has another kind of answer.
fn failure(answer: VolumeAnswer) -> ShardError {
    match answer {
        VolumeAnswer::Done(Err(error)) => error,
        _ => ShardError::Stopped,
    }
}
