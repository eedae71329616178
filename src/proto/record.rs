//! Account and token records as they lie in Redis: tolerant read, exact write-back.
