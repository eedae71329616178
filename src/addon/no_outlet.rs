//! Outlets are Unix's (see outlet.rs): here every answer takes the doorbell.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;

/// Never made on this system.
pub(crate) struct Outlet(Infallible);

impl Outlet {
    pub(crate) fn new(_descriptor: i32, _chunked: bool) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn open(self, _limit: Duration) -> io::Result<Writer> {
        match self.0 {}
    }
}

/// The system doesn't say.
pub(crate) fn unsent(_descriptor: i32) -> Option<u32> {
    None
}

/// Nor this (M90).
pub(crate) fn presence(_descriptor: i32) -> &'static str {
    "there"
}

/// Never made on this system.
pub(crate) struct Writer(Infallible);

impl Writer {
    pub(crate) async fn write(&mut self, _bytes: Bytes) -> io::Result<()> {
        match self.0 {}
    }
}
