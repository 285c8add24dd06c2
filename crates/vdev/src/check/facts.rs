//! What a backend says of itself, asked once before the cases: which of them apply depends on it.

use serde::Serialize;

use crate::protocol::ProtocolFeatures;

/// What a backend says of itself.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Facts {
    /// `GET_FEATURES`.
    pub features: u64,
    /// `GET_PROTOCOL_FEATURES`; none where the backend has no protocol features.
    #[serde(serialize_with = "by_name")]
    pub protocol_features: ProtocolFeatures,
    /// `GET_QUEUE_NUM`, or 1.
    pub queues: u64,
    /// Its configuration space, as much as it gives.
    pub config: Vec<u8>,
    /// Whether its process ends when its client leaves.
    pub ends_with_client: bool,
}

fn by_name<S: serde::Serializer>(features: &ProtocolFeatures, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(features)
}
