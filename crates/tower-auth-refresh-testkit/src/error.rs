//! [`ConnectionDropped`]: the error of a call without a socket.

use std::error::Error;
use std::fmt;

/// The error of a call without a socket, if a [`Fault`](crate::Fault) drops the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionDropped(pub(crate) ());

impl fmt::Display for ConnectionDropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was dropped before a response was sent")
    }
}

impl Error for ConnectionDropped {}
