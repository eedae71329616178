//! What upstream told us went wrong, classified by a total function.
