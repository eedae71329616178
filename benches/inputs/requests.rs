//! Requests as coding agents send them: the same bytes for every measurement.

use std::sync::LazyLock;

use bytes::Bytes;
use kiro_messages::proto::translate::ids::{ConversationKey, Ids};
use kiro_messages::proto::translate::model::Models;
use kiro_messages::proto::translate::request::{CachePoints, Context, LeaveOut, MAX_CACHE_POINTS, Replay, SystemPlace};

#[path = "conversation.rs"]
mod conversation;

pub use conversation::{CHINESE, CODE, ENGLISH, conversation};

/// The ids of every request.
pub static IDS: LazyLock<Ids> = LazyLock::new(|| Ids {
    conversation: "00000000-0000-4000-8000-000000000001".into(),
    continuation: "00000000-0000-4000-8000-000000000002".into(),
    key: ConversationKey::default(),
});

/// The translator's inputs, for a request that was read from `source`.
pub fn context(source: Option<&Bytes>) -> Context<'_> {
    Context {
        models: Models::embedded(),
        fallback: None,
        system_text: SystemPlace::Pair,
        cache_points: CachePoints::Off,
        cache_limit: MAX_CACHE_POINTS,
        ids: &IDS,
        replay: Replay::Everything,
        source,
        pictures: None,
        leave_out: LeaveOut::default(),
        other_model_id: false,
    }
}
