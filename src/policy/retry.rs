//! The verdict after a fault: stop, same account, next account.
