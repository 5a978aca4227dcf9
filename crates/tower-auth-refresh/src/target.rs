//! [`Target`]: an endpoint of an API, as the loop guard tells endpoints apart.

use std::num::NonZeroU32;

use http::Method;

/// A hash of a request's method, authority and path.
///
/// The query, and segments of the path that contain a digit, are left out: `/users/7/orders` and `/users/8/orders` are one
/// endpoint. Endpoints that share a hash share an account in the loop guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target(NonZeroU32);

impl Target {
    /// The target of [`Session::renewed`](crate::Session::renewed), whose requests the session does not see.
    pub(crate) const TOKEN_API: Self = Self(NonZeroU32::MAX);

    /// `target`: the path, with or without a query.
    pub(crate) fn new(method: &Method, authority: &str, target: &str) -> Self {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let segments = path.split('/').filter(|segment| !segment.bytes().any(|byte| byte.is_ascii_digit()));
        let authority = authority.bytes().map(|byte| byte.to_ascii_lowercase());
        // FNV-1a. No byte of a method, an authority or a path is a line feed.
        let mut hash = 0x811c_9dc5_u32;
        let mut add = |byte: u8| hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        method.as_str().bytes().for_each(&mut add);
        add(b'\n');
        authority.for_each(&mut add);
        for segment in segments {
            add(b'\n');
            segment.bytes().for_each(&mut add);
        }
        Self(NonZeroU32::new(hash).unwrap_or(NonZeroU32::MIN))
    }

    pub(crate) fn get(self) -> u32 {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(target: &str) -> Target {
        Target::new(&Method::GET, "api.example.com", target)
    }

    #[test]
    fn a_target_is_a_method_an_authority_and_a_path() {
        let fresh = get("/users/fresh");
        assert_eq!(Target::new(&Method::GET, "API.example.com", "/users/fresh"), fresh);
        for other in [
            Target::new(&Method::POST, "api.example.com", "/users/fresh"),
            Target::new(&Method::GET, "api.example.com:8443", "/users/fresh"),
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
