//! Volumes as the desired state has them, and their layers, which follow it.

use peristyle_base::LayerId;
use peristyle_control::desired::{Change, Volume, VolumeState};
use peristyle_control::{Control, ControlError, MetaStore};
use peristyle_node::{Node, VolumeSpec};
use peristyle_shard::ResizeError;
use std::fmt;
use std::rc::Rc;

/// Why a volume is not yet what the control store says.
#[derive(Debug)]
pub enum SettleError {
    /// Its shard does not do it now.
    Shard { volume: String, error: ResizeError },
    /// The control store does not.
    Control { volume: String, error: ControlError },
}

impl SettleError {
    pub(crate) fn shard(spec: &VolumeSpec, error: ResizeError) -> SettleError {
        SettleError::Shard { volume: spec.name.clone(), error }
    }
}

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SettleError::Shard { volume, error } => write!(f, "volume {volume}: {error}"),
            SettleError::Control { volume, error } => write!(f, "volume {volume}: {error}"),
        }
    }
}
impl std::error::Error for SettleError {}

/// What the data plane is to know of it.
pub fn spec_of(v: &Volume) -> VolumeSpec {
    VolumeSpec {
        name: v.name.clone(),
        nsid: v.id.0,
        uuid: v.uuid,
        nguid: v.nguid.0,
        bytes: v.bytes,
        lba_bytes: v.lba_bytes,
        shard: v.shard,
        layer: v.layer,
        read_only: v.snapshot_of.is_some(),
    }
}

/// Brings a volume's layer to what the control store says: a create, a resize or a delete may have been cut short.
pub async fn settle_volume<S: MetaStore + Clone + 'static>(
    node: &Rc<Node>,
    control: &Control<S>,
    volume: &Volume,
) -> Result<(), SettleError> {
    let spec = spec_of(volume);
    let Some(handle) = node.volume(&spec) else { return Ok(()) };
    let failed = |e: ResizeError| SettleError::shard(&spec, e);
    let refused = |error| SettleError::Control { volume: spec.name.clone(), error };
    match volume.state {
        VolumeState::Active | VolumeState::Kept if volume.snapshot_of.is_some() => {
            // It was asked for and never taken.
            if handle.usage().await.map_err(|e| failed(e.into()))?.is_none() {
                control.apply(&Change::BeginDelete { name: volume.name.clone() }).await.map_err(refused)?;
                control.apply(&Change::FinishDelete { volume: volume.id }).await.map_err(refused)?;
            }
        }
        VolumeState::Active | VolumeState::Kept => {
            if let Some(snapshot) = volume.cloned_from
                && handle.usage().await.map_err(|e| failed(e.into()))?.is_none()
            {
                handle.clone_of(LayerId(snapshot)).await.map_err(|e| failed(e.into()))?;
            }
            handle.settle_layer(spec.bytes.div_ceil(4096)).await.map_err(failed)?;
        }
        VolumeState::Deleting => {
            handle.drop_layer().await.map_err(|e| failed(e.into()))?;
            control.apply(&Change::FinishDelete { volume: volume.id }).await.map_err(refused)?;
        }
    }
    Ok(())
}
