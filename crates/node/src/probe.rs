//! Finds out whether a device answers: after a suspicion, and after it failed or stalled, again and again. One probe of
//! a device is in flight: one that never answers holds up nothing else.

use crate::Node;
use crate::devices::DeviceTable;
use peristyle_base::BLOCK_BYTES;
use peristyle_column::Server;
use peristyle_rt::{Buf, Duration, timeout};
use std::rc::Rc;

/// Pause between probes of a bad device.
pub(crate) const PERIOD: Duration = Duration::from_millis(200);
/// A device under suspicion that answers in this time is not bad: it has much to do.
pub(crate) const CHECK_LIMIT: Duration = Duration::from_millis(40);
/// A probe must answer in this time, so often in a row, before a device is trusted again.
pub(crate) const LIMIT: Duration = Duration::from_millis(20);
pub(crate) const GOOD: u32 = 5;

/// A device was late. When it does not answer now either, it stalls: nobody reads from it until it
/// does.
pub(crate) async fn check(server: Server, devices: DeviceTable) {
    let Some(shared) = devices.get(server.id()) else { return };
    let buf = Buf::alloc(BLOCK_BYTES).await;
    match timeout(CHECK_LIMIT, server.device().read(0, buf)).await {
        Some((Ok(()), _)) => {}
        failed => {
            devices.set_bad(server.id(), failed.is_some());
            devices.set_away(server.id());
        }
    }
    shared.clear_suspicion();
}

/// While the device is bad, asks it until it answers, quickly and several times in a row.
pub(crate) async fn watch(server: Server, node: Rc<Node>) {
    let devices = node.devices();
    let mut good = 0;
    let is_served = || devices.get(server.id()).is_some_and(|d| d.wish().serves());
    while !node.is_stopping() && is_served() {
        peristyle_rt::sleep(PERIOD).await;
        if !devices.is_bad(server.id()) {
            good = 0;
            continue;
        }
        let buf = Buf::alloc(BLOCK_BYTES).await;
        let asked = peristyle_rt::now();
        let (answer, _) = server.device().read(0, buf).await;
        let quick = peristyle_rt::now().since(asked) <= LIMIT;
        if answer.is_ok() && quick {
            devices.set_back(server.id());
        }
        good = if answer.is_ok() && quick { good + 1 } else { 0 };
        if good >= GOOD {
            good = 0;
            devices.set_good(server.id());
        }
    }
}
