//! Who may connect to a Unix socket of ours.

use peristyle_rt::{Addr, Listener, RuntimeConfig, block_on};
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_unix_socket_is_its_owners_alone_whatever_the_umask() {
    let path = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("m{}", std::process::id()));
    block_on(RuntimeConfig::small(), async move {
        let _listener = Listener::bind(&Addr::Unix(path.clone()), false).await.expect("bound");
        let mode = std::fs::metadata(&path).expect("the socket's file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    });
}
