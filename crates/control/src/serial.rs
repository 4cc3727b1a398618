//! How ids are written in JSON and TOML: numbers as numbers, everything else as people write it.

/// `#[serde(with = "text")]` for what prints and parses: UUIDs, schemes, policies.
pub mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<T: ToString, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&value.to_string())
    }
    pub fn deserialize<'de, T: std::str::FromStr, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(|_| D::Error::custom(format!("`{text}` is not what belongs here")))
    }
}

macro_rules! number {
    ($name:ident, $type:ident) => {
        pub mod $name {
            use peristyle_base::$type;
            use serde::{Deserialize, Deserializer, Serializer};

            pub fn serialize<S: Serializer>(id: &$type, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_u32(id.0)
            }
            pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<$type, D::Error> {
                u32::deserialize(d).map($type)
            }
        }
    };
}

number!(volume_id, VolumeId);
number!(shard_id, ShardId);
number!(layer_id, LayerId);
number!(pool_id, PoolId);
number!(node_id, NodeId);

/// The same for a number that may not be there.
pub mod maybe_node_id {
    use peristyle_base::NodeId;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(id: &Option<NodeId>, s: S) -> Result<S::Ok, S::Error> {
        id.map(|id| id.0).serialize(s)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<NodeId>, D::Error> {
        Ok(Option::<u32>::deserialize(d)?.map(NodeId))
    }
}
