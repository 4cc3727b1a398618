//! Clusters are founded, and found again, in their store.

use super::member::reach;
use super::store::{random_secret, random_uuid};
use crate::failure::Failure;
use peristyle_base::Uuid;
use peristyle_control::member::{NewCluster, create_cluster};
use peristyle_control::{Control, StoreAt, Token};
use peristyle_rt::RuntimeConfig;

fn named(name: &str, store: &StoreAt) -> Token {
    Token { name: name.to_owned(), store: store.clone(), cluster: Uuid::default(), secret: None }
}

/// Makes a cluster; the token is what its nodes join with. `uuid` of `new` is drawn here, and the token's secret.
pub fn create(name: &str, store: &StoreAt, new: NewCluster) -> Result<Token, Failure> {
    let mut token = named(name, store);
    let there = reach(&token)?;
    peristyle_rt::block_on(RuntimeConfig::small(), async move {
        (token.cluster, token.secret) = (random_uuid(), Some(random_secret()));
        let new = NewCluster { uuid: token.cluster, ..new };
        create_cluster(there, &new).await.map_err(Failure::from)?;
        Ok(token)
    })
}

/// The token of a cluster that is there, without its secret, which only tokens have, or with another one.
pub fn token(name: &str, store: &StoreAt, new_secret: bool) -> Result<Token, Failure> {
    let mut token = named(name, store);
    let there = reach(&token)?;
    peristyle_rt::block_on(RuntimeConfig::small(), async move {
        let missing = || Failure::failed(format!("there is no cluster `{}` at {}", token.name, token.store));
        let control = Control::open(there).await.map_err(Failure::from)?.ok_or_else(missing)?;
        token.cluster = control.state().cluster.uuid;
        token.secret = new_secret.then(random_secret);
        Ok(token)
    })
}
