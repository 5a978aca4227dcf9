//! [`Target`]: an endpoint of an API, as the loop guard tells endpoints apart.

use std::num::NonZeroU32;

use http::Method;

/// A hash of a request's method, authority and path.
///
/// The query, and segments of the path that contain a digit, are left out: `/users/7/orders` and `/users/8/orders` are one
/// endpoint. Endpoints with the same hash count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target(NonZeroU32);

impl Target {
    /// The target of refreshes that no refusal starts.
    pub(crate) const SESSION: Self = Self(NonZeroU32::MIN);

    /// The target of [`Session::renewed`](crate::Session::renewed): the session doesn't see the requests of its callers.
    pub(crate) const TOKEN_API: Self = Self(NonZeroU32::MAX);

    /// `path`: with or without a query.
    pub(crate) fn new(method: &Method, authority: &[u8], path: &[u8]) -> Self {
        let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
        let segments = path.split(|byte| *byte == b'/').filter(|segment| !segment.iter().any(u8::is_ascii_digit));
        // FNV-1a. No byte of a method, an authority or a path is a line feed.
        let mut hash = 0x811c_9dc5_u32;
        let mut add = |byte: u8| hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        method.as_str().bytes().for_each(&mut add);
        add(b'\n');
        authority.iter().map(u8::to_ascii_lowercase).for_each(&mut add);
        for segment in segments {
            add(b'\n');
            segment.iter().copied().for_each(&mut add);
        }
        Self(NonZeroU32::new(hash).unwrap_or(NonZeroU32::MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Target {
        Target::new(&Method::GET, b"api.example.com", path.as_bytes())
    }

    #[test]
    fn a_target_is_a_method_an_authority_and_a_path() {
        let fresh = get("/users/fresh");
        assert_eq!(Target::new(&Method::GET, b"API.example.com", b"/users/fresh"), fresh);
        for other in [
            Target::new(&Method::POST, b"api.example.com", b"/users/fresh"),
            Target::new(&Method::GET, b"api.example.com:8443", b"/users/fresh"),
            get("/users/ok"),
            get("/users"),
            get("/usersfresh"),
            get(""),
        ] {
            assert_ne!(other, fresh);
        }
    }

    #[test]
    fn queries_and_segments_with_a_digit_are_left_out() {
        assert_eq!(get("/users/7/fresh?a=b"), get("/users/0d41cc/fresh?page=2"));
        assert_eq!(get("/fresh?path=/ok"), get("/fresh"));
        assert_ne!(get("/users/7/fresh"), get("/users/7/ok"));
    }
}
