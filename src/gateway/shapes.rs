//! The shapes of upstream's API that may be used for an account.

use std::sync::Arc;

use crate::policy::learned::Variant;
use crate::pool::Lease;
use crate::proto::kiro::route::Shape;

/// A usable shape.
pub(super) struct UsableShape<'v> {
    pub(super) shape: Shape,
    pub(super) region: &'v str,
    /// Of the chat call.
    pub(super) url: Arc<str>,
    pub(super) variant: &'v Variant,
    pub(super) refused: bool,
}

/// The shapes that may be used for an account, the preferred one first, each with the variant that would go out.
pub(super) fn options(lease: &Lease) -> Vec<UsableShape<'_>> {
    let view = lease.account();
    let variants = view.variants();
    lease.learned(|learned, now| {
        let option = |shape: &Shape| {
            let variant = learned.next_variant(*shape, variants, now)?;
            let region = view.api_region(variant);
            let served = view.shapes(region).contains(shape);
            served.then(|| UsableShape {
                shape: *shape,
                url: view.chat_url(*shape, region),
                region,
                variant,
                refused: learned.is_shape_refused(*shape, now),
            })
        };
        view.shapes(view.region()).iter().filter_map(option).collect()
    })
}
