//! Volumes that cannot be exported when the target starts.

use crate::common::{MIB, Rig, spec};
use peristyle_base::LayerId;
use peristyle_node::{TargetConfig, VolumeSpec};
use peristyle_nvme::QpairLimits;
use peristyle_nvme::subsystem::Hosts;
use peristyle_nvme::wire::fabrics::Nqn;
use peristyle_rt::{Addr, Duration};

#[test]
fn a_volume_is_exported_once_it_can_be_and_what_never_can_is_left_alone() {
    let mut rig = Rig::new(41, "2+1", 4, 1);
    rig.config.shard.map_cache_bytes = 0; // the least there is covers 256 GiB of volumes
    rig.run(|node, first| async move {
        let volume = |nsid: u32, layer: u32, mib: u64| VolumeSpec {
            name: format!("v{nsid}"),
            nsid,
            bytes: mib * MIB,
            layer: LayerId(layer),
            ..spec()
        };
        let config = TargetConfig {
            listen: Addr::Tcp("10.0.0.1:4420".parse().unwrap()),
            portals: Vec::new(),
            nqn: Nqn::new("nqn.2026-01.io.peristyle:pool").unwrap(),
            serial: "0123456789".into(),
            hosts: Hosts::Any,
            // The second does not fit beside the first; the third says that the first's layer has another size.
            volumes: vec![spec(), volume(2, 2, 256 << 10), volume(3, 1, 32)],
            limits: QpairLimits::default(),
            forwards: false,
        };
        let exported = || node.exported().iter().map(|v| v.nsid).collect::<Vec<_>>();
        node.start_target(config).await.unwrap();
        assert_eq!(exported(), [1]);
        peristyle_rt::sleep(Duration::from_secs(1)).await;
        assert_eq!(exported(), [1]);
        // Room for both, and nothing that contradicts: the one that waited comes, the other was given up.
        assert!(node.remove_volume(1).await);
        first.drop_layer().await.unwrap();
        peristyle_rt::sleep(Duration::from_secs(1)).await;
        assert_eq!(exported(), [2]);
        node.stop_target().await;
    });
}
