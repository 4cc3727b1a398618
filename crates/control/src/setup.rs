//! Makes what is there what was asked for, at each start: a new store is completed, an old one is brought up to
//! the command line or configuration.

use crate::desired::{
    Change, Control, ControlError, Device, DeviceState, FailureDomain, LAYER_FIRST, Pool, VolumeSpec,
};
use crate::meta::MetaStore;
use peristyle_base::{DeviceId, NodeId, PoolId, Scheme, Uuid};
use peristyle_cluster::TooFewPolicy;

/// The one pool of a machine.
pub const POOL: PoolId = PoolId(0);

/// What a start asks for.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Of a new store; `None` makes one from its UUID.
    pub nqn: Option<String>,
    /// Of a new store.
    pub shards: usize,
    pub pool_name: String,
    /// Of new and old stores: a change holds for new data.
    pub scheme: Scheme,
    pub too_few_domains: TooFewPolicy,
    /// Those that were found, by their labels.
    pub devices: Vec<FoundDevice>,
    /// Created when no volume has the name.
    pub volumes: Vec<VolumeWish>,
    /// Whether `volumes` is meant only for a store that never had a volume.
    pub volumes_only_if_new: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundDevice {
    pub id: DeviceId,
    pub path: String,
    /// `None`: a failure domain of its own.
    pub domain: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeWish {
    pub name: String,
    pub bytes: u64,
    pub lba_bytes: u32,
}

/// Domains that nobody named start here, so that they never meet one that was named.
const OWN_DOMAIN_FIRST: u32 = 1 << 31;

/// NVMe Base 2.0c §4.5: the form for names that are made from a UUID.
pub fn nqn_of(uuid: Uuid) -> String {
    format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}")
}

/// Opens what `store` holds, or makes it; `cluster` is the cluster of the devices' labels when the store is new
/// and they are not. Random bytes come from `random`, since nothing here draws any. A start that was cut short
/// is completed by the next.
pub async fn open_or_create<S: MetaStore + Clone>(
    store: S,
    setup: &Setup,
    cluster: Uuid,
    random: impl Fn(&mut [u8]),
) -> Result<Control<S>, ControlError> {
    let control = match Control::open(store.clone()).await? {
        Some(control) => control,
        None => {
            let nqn = setup.nqn.clone().unwrap_or_else(|| nqn_of(cluster));
            Control::create(store, cluster, &nqn).await?
        }
    };
    pool(&control, setup).await?;
    devices(&control, &setup.devices, None).await?;
    if control.state().shards.is_empty() {
        control.apply(&Change::AddShards { pool: POOL, count: setup.shards }).await?;
    }
    let never_had_one = control.state().cluster.next_layer == LAYER_FIRST;
    if never_had_one || !setup.volumes_only_if_new {
        volumes(&control, &setup.volumes, random).await?;
    }
    Ok(control)
}

async fn pool<S: MetaStore>(control: &Control<S>, setup: &Setup) -> Result<(), ControlError> {
    let there = control.state().pools.get(&POOL).cloned();
    let Setup { scheme, too_few_domains, .. } = *setup;
    match there {
        None => {
            let (name, failure_domain) = (setup.pool_name.clone(), FailureDomain::Device);
            let pool = Pool { id: POOL, name, scheme, too_few_domains, failure_domain };
            control.apply(&Change::CreatePool(pool)).await?;
        }
        Some(pool) if (pool.scheme, pool.too_few_domains) != (scheme, too_few_domains) => {
            control.apply(&Change::SetPool { pool: POOL, scheme, too_few_domains }).await?;
        }
        Some(_) => {}
    }
    Ok(())
}

/// Devices that are known and were not found stay: they may come back.
pub(crate) async fn devices<S: MetaStore>(
    control: &Control<S>,
    found: &[FoundDevice],
    node: Option<NodeId>,
) -> Result<(), ControlError> {
    for device in found {
        let FoundDevice { id, path, .. } = device.clone();
        let there = control.state().devices.get(&id).cloned();
        let domain = match (device.domain, &there) {
            (Some(named), _) => named,
            (None, Some(there)) if there.domain >= OWN_DOMAIN_FIRST => there.domain,
            (None, _) => own_domain(control),
        };
        match there {
            None => drop(
                control
                    .apply(&Change::AddDevice(Device {
                        id,
                        pool: POOL,
                        domain,
                        path,
                        state: DeviceState::Active,
                        node,
                    }))
                    .await?,
            ),
            Some(d) if d.path != path || d.domain != domain || d.node != node => {
                control.apply(&Change::SetDevice { device: id, node, path, domain }).await?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// A failure domain for a device that nobody named one for: the first number that no device has. Devices are fewer
/// than numbers.
pub fn own_domain<S: MetaStore>(control: &Control<S>) -> u32 {
    let state = control.state();
    let taken = |n: &u32| state.devices.values().any(|d| d.domain == *n);
    (OWN_DOMAIN_FIRST..).find(|n| !taken(n)).expect("fewer devices than numbers")
}

async fn volumes<S: MetaStore>(
    control: &Control<S>,
    wishes: &[VolumeWish],
    random: impl Fn(&mut [u8]),
) -> Result<(), ControlError> {
    for wish in wishes {
        if control.state().volume(&wish.name).is_none() {
            control.apply(&Change::CreateVolume(wish.spec(&random))).await?;
        }
    }
    Ok(())
}

impl VolumeWish {
    /// With identities of its own.
    pub fn spec(&self, random: impl Fn(&mut [u8])) -> VolumeSpec {
        let draw = || {
            let mut bytes = [0; 16];
            random(&mut bytes);
            Uuid::from_random(bytes)
        };
        let VolumeWish { name, bytes, lba_bytes } = self.clone();
        VolumeSpec { name, bytes, lba_bytes, uuid: draw(), nguid: draw() }
    }
}
