//! Devices of a reactor are opened: those of the configuration at start, those that were not there when they come, and
//! new ones. What was given up is let go of.

use crate::LocalBoxed;
use crate::Node;
use crate::config::DeviceConfig;
use crate::devices::{Home, Wish};
use crate::message::{Reply, Request};
use crate::probe;
use crate::reactor::DeviceOpenError;
use peristyle_base::{DeviceId, Scheme};
use peristyle_cluster::DomainId;
use peristyle_column::{FormatOptions, Server, ServerConfig};
use peristyle_rt::{Device, DeviceSpec, Duration, timeout};
use std::rc::Rc;

/// A device that takes longer to be opened is away, as if it were not there. One in memory takes as long as it takes.
pub(crate) const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks for devices that are not there.
const REOPEN_PERIOD: Duration = Duration::from_secs(2);

impl Node {
    pub(crate) async fn open_devices(self: &Rc<Self>) {
        let mine: Vec<DeviceConfig> = self.my_devices.borrow().clone();
        let opening =
            mine.iter().filter(|d| d.wish.serves()).map(|d| async move { (d.id, self.open(d).await) });
        for (id, opened) in peristyle_rt::join_all(opening).await {
            if let Err(error) = opened {
                self.open_errors.borrow_mut().push((id, error));
            }
        }
    }

    /// Opens a device and serves it.
    async fn open(self: &Rc<Self>, config: &DeviceConfig) -> Result<(), DeviceOpenError> {
        let opening = self.open_device(config);
        let opened = match config.spec {
            // There is nobody to wait for but the system, which clears its pages.
            DeviceSpec::Memory { .. } => opening.await,
            _ => timeout(OPEN_LIMIT, opening).await.unwrap_or(Err(DeviceOpenError::NoAnswer)),
        };
        let server = opened?;
        self.columns().publish_usage(&server);
        self.columns().add_server(server.clone());
        self.open_errors.borrow_mut().retain(|e| e.0 != config.id);
        self.devices().get(config.id).expect("it is in the table before it is opened").set_open();
        peristyle_rt::spawn_background(probe::watch(server, self.clone()));
        Ok(())
    }

    async fn open_device(&self, config: &DeviceConfig) -> Result<Server, DeviceOpenError> {
        let device = Device::open(&config.spec).await.map_err(DeviceOpenError::Io)?;
        if let DeviceSpec::Memory { .. } = config.spec {
            // Made this moment, hence blank.
            let options = FormatOptions { cluster: self.config().cluster, device: config.id, force: false };
            peristyle_column::format(&device, options).await.map_err(DeviceOpenError::Format)?;
        }
        let (expect, discard) = (Some(config.id), config.discard);
        let server = ServerConfig { expect, discard, ..ServerConfig::default() };
        let server =
            Server::open(device, self.config().cluster, server).await.map_err(DeviceOpenError::Label)?;
        // Kept back so that a full pool still restarts, unmaps and checkpoints (invariant 11).
        let shards = self.config().pool_shards();
        let reserve = crate::devices::reserve(server.usage().total, shards.len());
        shards.into_iter().for_each(|shard| server.set_reserve(shard, reserve));
        Ok(server)
    }

    /// Serves a device that is new; it is formatted. All reactors place columns on it from now on.
    pub fn add_device(self: &Rc<Self>, config: DeviceConfig) -> LocalBoxed<'_, Result<(), DeviceOpenError>> {
        Box::pin(async move {
            if config.home == self.id() {
                return self.open_new(config).await;
            }
            match self.bus().call(config.home, Request::Open(Box::new(config))).await {
                Reply::Opened(result) => result,
                _ => Err(DeviceOpenError::NoAnswer),
            }
        })
    }

    pub(crate) async fn open_new(self: &Rc<Self>, config: DeviceConfig) -> Result<(), DeviceOpenError> {
        if !self.devices().add(config.shared())
            && let Some(there) = self.devices().get(config.id)
        {
            there.set_home(Home::Here(self.id())); // another node had it
        }
        self.my_devices.borrow_mut().retain(|d| d.id != config.id);
        self.my_devices.borrow_mut().push(config.clone());
        self.open(&config).await
    }

    /// The pool's scheme from now on.
    pub fn set_scheme(&self, scheme: Scheme) {
        self.devices().set_scheme(scheme);
    }

    /// What a device fails together with, from now on.
    pub fn set_domain(&self, device: DeviceId, domain: DomainId) {
        if let Some(device) = self.devices().get(device) {
            device.set_domain(domain);
        }
    }

    /// What the operator wants of a device from now on.
    pub fn set_wish(&self, device: DeviceId, wish: Wish) {
        self.devices().set_wish(device, wish);
    }

    /// Opens devices that were not there once they are, and lets go of those that were given up.
    pub(crate) async fn run_reopener(self: Rc<Self>) {
        while !self.is_stopping() {
            peristyle_rt::sleep(REOPEN_PERIOD).await;
            let mine = self.my_devices.borrow().clone();
            for config in mine {
                let Some(shared) = self.devices().get(config.id) else { continue };
                if shared.is_peers() {
                    // It is another node's now.
                    self.columns().drop_server(config.id);
                    self.my_devices.borrow_mut().retain(|d| d.id != config.id);
                } else if !shared.wish().serves() {
                    self.columns().drop_server(config.id);
                } else if !shared.is_open() && matches!(config.spec, DeviceSpec::Path { .. }) {
                    let _ = self.open(&config).await; // why it failed is known from the start
                }
            }
        }
    }
}
