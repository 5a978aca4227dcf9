//! The refresh token, and other values, in cookies.

mod names;
mod set_cookie;

pub(crate) use self::names::{CookieNames, ReceivedCookies};
pub(crate) use self::set_cookie::CookieChange;
