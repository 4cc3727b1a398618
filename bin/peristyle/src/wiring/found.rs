//! Clusters are founded, and found again, in their store.

use super::member::reach;
use super::store::random_uuid;
use crate::failure::Failure;
use peristyle_base::Uuid;
use peristyle_control::member::{NewCluster, create_cluster};
use peristyle_control::{Control, StoreAt, Token};
use peristyle_rt::RuntimeConfig;

/// Makes a cluster; the token is what its nodes join with. `uuid` of `new` is drawn here.
pub fn create(name: &str, store: &StoreAt, new: NewCluster) -> Result<Token, Failure> {
    let mut token = Token { name: name.to_owned(), store: store.clone(), cluster: Uuid::default() };
    let there = reach(&token)?;
    peristyle_rt::block_on(RuntimeConfig::small(), async move {
        token.cluster = random_uuid();
        let new = NewCluster { uuid: token.cluster, ..new };
        create_cluster(there, &new).await.map_err(Failure::from)?;
        Ok(token)
    })
}

/// The token of a cluster that is there.
pub fn token(name: &str, store: &StoreAt) -> Result<Token, Failure> {
    let mut token = Token { name: name.to_owned(), store: store.clone(), cluster: Uuid::default() };
    let there = reach(&token)?;
    peristyle_rt::block_on(RuntimeConfig::small(), async move {
        let missing = || Failure::failed(format!("there is no cluster `{}` at {}", token.name, token.store));
        let control = Control::open(there).await.map_err(Failure::from)?.ok_or_else(missing)?;
        token.cluster = control.state().cluster.uuid;
        Ok(token)
    })
}
