//! The shards' records, kept in a [`MetaStore`] under `record/<shard>`.

use crate::meta::{MetaError, MetaStore, Revision, Txn};
use peristyle_base::ShardId;
use peristyle_cluster::{ShardRecord, ShardStore, StoreError, Version};

/// `cluster::ShardStore` over any store. A version is the revision of the record's key.
#[derive(Clone)]
pub struct ShardRecords<S>(pub S);

fn key(shard: ShardId) -> String {
    format!("record/{shard}")
}

fn store_error(e: MetaError) -> StoreError {
    match e {
        MetaError::Conflict { .. } => StoreError::Conflict,
        MetaError::Unavailable(_) | MetaError::NoLease => StoreError::Unavailable,
        MetaError::Unknown(_) => StoreError::Unknown,
        MetaError::TooLarge => StoreError::TooLarge,
    }
}

impl<S: MetaStore> ShardStore for ShardRecords<S> {
    async fn load(&self, shard: ShardId) -> Result<Option<(ShardRecord, Version)>, StoreError> {
        let Some(item) = self.0.get(&key(shard)).await.map_err(store_error)? else { return Ok(None) };
        match ShardRecord::decode(&item.value) {
            Ok(record) if record.shard == shard => Ok(Some((record, Version(item.revision.0)))),
            _ => Err(StoreError::Damaged),
        }
    }

    async fn put(
        &self,
        shard: ShardId,
        expected: Version,
        record: &ShardRecord,
    ) -> Result<Version, StoreError> {
        assert_eq!(shard, record.shard, "a record goes to its own shard");
        // The version stands for everything in the record, so a put at the right version that lowers the epoch
        // is one that did not look at what it loaded.
        if expected != Version::ABSENT
            && let Some((there, version)) = self.load(shard).await?
            && (version != expected || there.epoch > record.epoch)
        {
            return Err(StoreError::Conflict);
        }
        let mut bytes = Vec::with_capacity(record.encoded_bytes());
        record.encode(&mut bytes).map_err(|_| StoreError::TooLarge)?;
        let key = key(shard);
        let txn = Txn::default().compare(key.clone(), Revision(expected.0)).put(key, bytes);
        let revision = self.0.commit(txn).await.map_err(store_error)?;
        Ok(Version(revision.0))
    }
}
