//! Shapes of token refresh, for social and IdC accounts.
