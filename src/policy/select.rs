//! Ranking of accounts for one request.
