//! The shared store of a development cluster without etcd: this process has it, and serves it to the nodes.

use crate::failure::Failure;
use peristyle_control::{EmbeddedStore, serve_store};
use peristyle_rt::sync::Event;
use peristyle_rt::{Addr, Listener, RuntimeConfig};
use std::net::SocketAddr;
use std::path::Path;

/// Serves until SIGINT or SIGTERM.
pub fn run(file: &Path, listen: SocketAddr, name: &str) -> Result<(), Failure> {
    let store = EmbeddedStore::open(file).map_err(|e| Failure::failed(e.to_string()))?;
    let (shared, name) = (store.clone(), name.to_owned());
    let config = RuntimeConfig { signals: true, ..RuntimeConfig::small() };
    let served = peristyle_rt::block_on(config, async move {
        let listener = Listener::bind(&Addr::Tcp(listen), false)
            .await
            .map_err(|e| Failure::failed(format!("{listen}: {e}")))?;
        let stop = Event::default();
        let asked = stop.clone();
        peristyle_rt::spawn(async move {
            peristyle_rt::shutdown_requested().await;
            asked.set();
        });
        serve_store(listener, name, shared, stop).await;
        Ok(())
    });
    store.close().map_err(|e| Failure::failed(e.to_string()))?;
    served
}
