//! [`Head`]: a request without its body.

use bytes::{Buf, Bytes};
use http::header::{HeaderName, HeaderValue};
use http::uri::{self, Authority, PathAndQuery, Scheme, Uri};
use http::{Extensions, Method, Request, Version, request};

use super::NotReplayable;
use crate::target::Target;

/// The head of a request, kept for a replay.
///
/// Authority, target and headers are packed into one buffer, which is one allocation. To clone them instead takes up to
/// one allocation for each value, and writes reference counts that other threads may share. Only a replay unpacks.
pub(crate) struct Head {
    method: Method,
    version: Version,
    extensions: Extensions,
    /// Not packed: a clone of `http` or `https` neither allocates nor counts a reference.
    scheme: Option<Scheme>,
    /// Authority, path and query, then a name and a value for each header; see [`pack`].
    packed: Vec<u8>,
}

impl Head {
    /// Copies the head of a request to which no token is attached yet.
    pub(crate) fn keep<B>(request: &Request<B>) -> Self {
        let (uri, headers, extensions) = (request.uri(), request.headers(), request.extensions());
        // Large enough for ordinary heads, and small enough for the thread-local free lists of allocators. To compute
        // the exact size first costs more than it saves.
        let mut packed = Vec::with_capacity(128 + 56 * headers.len());
        let target = uri.path_and_query().map_or("", PathAndQuery::as_str);
        // Without a target, `path_and_query` may still return `/`.
        let target = if uri.scheme().is_none() && uri.path().is_empty() { "" } else { target };
        pack(&mut packed, uri.authority().map_or("", Authority::as_str).as_bytes(), false);
        pack(&mut packed, target.as_bytes(), false);
        // To iterate over an empty map takes instructions, too.
        if !headers.is_empty() {
            for (name, value) in headers {
                pack(&mut packed, name.as_str().as_bytes(), false);
                pack(&mut packed, value.as_bytes(), value.is_sensitive());
            }
        }
        let extensions = if extensions.is_empty() { Extensions::new() } else { extensions.clone() };
        let (method, version, scheme) = (request.method().clone(), request.version(), uri.scheme().cloned());
        Self { method, version, extensions, scheme, packed }
    }

    /// Returns the endpoint that the request is sent to.
    pub(crate) fn target(&self) -> Target {
        let (authority, rest) = next(&self.packed).unwrap_or_default();
        let (path_and_query, _) = next(rest).unwrap_or_default();
        Target::new(&self.method, authority, path_and_query)
    }

    /// Unpacks the head, still without a token.
    ///
    /// # Errors
    ///
    /// If its own parser doesn't accept a part of the head: such a part can be made with `unsafe` constructors.
    pub(crate) fn rebuild(self) -> Result<request::Parts, NotReplayable> {
        self.unpacked().ok_or(NotReplayable::Head)
    }

    fn unpacked(self) -> Option<request::Parts> {
        let mut packed = Bytes::from(self.packed);
        let (mut head, ()) = Request::new(()).into_parts();
        head.method = self.method;
        head.version = self.version;
        head.extensions = self.extensions;
        head.uri = unpack_uri(&mut packed, self.scheme)?;
        while packed.has_remaining() {
            let (name, _) = unpack(&mut packed)?;
            let (value, sensitive) = unpack(&mut packed)?;
            let mut value = HeaderValue::from_maybe_shared(value).ok()?;
            value.set_sensitive(sensitive);
            head.headers.try_append(HeaderName::from_bytes(&name).ok()?, value).ok()?;
        }
        Some(head)
    }
}

/// Builds the URI from its parts: as one text, an absolute URI with the target `*` wouldn't parse.
fn unpack_uri(packed: &mut Bytes, scheme: Option<Scheme>) -> Option<Uri> {
    let mut parts = uri::Parts::default();
    parts.scheme = scheme;
    let (authority, _) = unpack(packed)?;
    if !authority.is_empty() {
        parts.authority = Some(Authority::from_maybe_shared(authority).ok()?);
    }
    let (target, _) = unpack(packed)?;
    if !target.is_empty() {
        parts.path_and_query = Some(PathAndQuery::from_maybe_shared(target).ok()?);
    }
    Uri::from_parts(parts).ok()
}

/// Appends the length of `bytes`, with the flag as its lowest bit, and then the bytes.
#[inline(always)]
#[expect(clippy::inline_always, reason = "saves instructions in every request: see the instruction counts")]
fn pack(packed: &mut Vec<u8>, bytes: &[u8], flag: bool) {
    let len = 2 * bytes.len() as u64 + u64::from(flag);
    packed.extend_from_slice(&len.to_le_bytes());
    packed.extend_from_slice(bytes);
}

/// Returns the next part, and the rest.
fn next(packed: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = packed.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len) / 2).ok()?)
}

fn unpack(packed: &mut Bytes) -> Option<(Bytes, bool)> {
    let len = packed.try_get_u64_le().ok()?;
    let bytes = packed.split_to(usize::try_from(len / 2).ok()?);
    Some((bytes, len % 2 == 1))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::*;

    fn keep_and_rebuild(request: &Request<()>) -> request::Parts {
        Head::keep(request).rebuild().unwrap()
    }

    /// All representations of a URI from which clients write the target to the wire.
    fn representations(uri: &Uri) -> impl PartialEq + std::fmt::Debug {
        let path_and_query = uri.path_and_query().map(|path_and_query| path_and_query.as_str().to_owned());
        let (scheme, authority) = (uri.scheme_str().map(str::to_owned), uri.authority().map(ToString::to_string));
        (uri.to_string(), scheme, authority, path_and_query, uri.path().to_owned(), uri.query().map(str::to_owned))
    }

    /// All headers in their order, which is the order on the wire.
    fn listed(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue, bool)> {
        headers.iter().map(|(name, value)| (name.clone(), value.clone(), value.is_sensitive())).collect()
    }

    fn same_uri(uri: Uri) {
        let mut request = Request::new(());
        *request.uri_mut() = uri;
        let rebuilt = keep_and_rebuild(&request).uri;
        assert_eq!(representations(&rebuilt), representations(request.uri()));
        assert_eq!(rebuilt, *request.uri());
    }

    #[test]
    fn targets_of_all_forms_are_the_same_in_the_replay() {
        for uri in [
            "https://api.example.com/v1/users?limit=20",
            "HTTPS://User:pw@API.Example.com:8443/a//b/../%20?q=%2F&&=?",
            "http://[::1]:80",
            "https://[2001:db8::1]:8443/x",
            "http://example.com?only=query",
            "http://example.com/path?",
            "http://example.com#fragment",
            "ftp://example.com/",
            "unix+socket://var-run/x",
            "/",
            "/path?query",
            "/bücher?ß",
            "*",
            "example.com:443",
            "localhost",
        ] {
            same_uri(uri.parse().unwrap());
        }
        // `OPTIONS *` in HTTP/2, no path, and an empty URI.
        for path in ["*", ""] {
            same_uri(Uri::builder().scheme("https").authority("example.com").path_and_query(path).build().unwrap());
        }
        same_uri(Uri::from_parts(uri::Parts::default()).unwrap());
    }

    #[test]
    fn methods_and_versions_are_the_same_in_the_replay() {
        for method in ["GET", "QUERY", "PROPFIND", "A-METHOD-OF-MORE-THAN-FIFTEEN-LETTERS"] {
            for version in [Version::HTTP_09, Version::HTTP_10, Version::HTTP_11, Version::HTTP_2, Version::HTTP_3] {
                let request = Request::builder().method(method).version(version).body(()).unwrap();
                let rebuilt = keep_and_rebuild(&request);
                assert_eq!((rebuilt.method.as_str(), rebuilt.version), (method, version));
            }
        }
    }

    #[test]
    fn headers_are_the_same_in_the_replay_repeated_ones_and_the_sensitive_flag_included() {
        let mut request = Request::new(());
        let headers = request.headers_mut();
        let mut secret = HeaderValue::from_static("session=1");
        secret.set_sensitive(true);
        headers.append("x-one", HeaderValue::from_static("1"));
        headers.append("cookie", secret);
        headers.append("x-two", HeaderValue::from_static(""));
        headers.append("x-one", HeaderValue::from_bytes(b"\xff\x80 \t obs-text").unwrap());
        headers.append("cookie", HeaderValue::from_static("theme=dark"));
        headers.append("x-gone", HeaderValue::from_static("so that the order differs from that of insertion"));
        headers.append("x-three", HeaderValue::from_static("3"));
        headers.remove("x-gone");
        headers.remove("x-two");
        let rebuilt = keep_and_rebuild(&request);
        assert_eq!(listed(&rebuilt.headers), listed(request.headers()));
        assert_eq!(rebuilt.headers.get_all("cookie").iter().filter(|value| value.is_sensitive()).count(), 1);
    }

    #[test]
    fn extensions_are_the_same_in_the_replay() {
        #[derive(Clone, Debug, PartialEq)]
        struct Trace(u64);
        assert!(keep_and_rebuild(&Request::new(())).extensions.is_empty());
        let request = Request::builder().extension(Trace(7)).body(()).unwrap();
        assert_eq!(keep_and_rebuild(&request).extensions.get(), Some(&Trace(7)));
    }

    #[test]
    fn a_head_larger_than_the_first_buffer_and_empty_heads_are_kept() {
        let value = "v".repeat(100_000);
        let request = Request::get("/").header("x-large", &value).header("x-after", "1").body(()).unwrap();
        assert_eq!(keep_and_rebuild(&request).headers, *request.headers());
        assert!(keep_and_rebuild(&Request::new(())).headers.is_empty());
    }

    #[test]
    fn a_head_that_its_own_parsers_do_not_accept_is_not_replayed() {
        let head = |scheme: Option<Scheme>, parts: [&[u8]; 4]| {
            let mut packed = Vec::new();
            for part in parts {
                pack(&mut packed, part, false);
            }
            let (method, version, extensions) = (Method::GET, Version::HTTP_11, Extensions::new());
            Head { method, version, extensions, scheme, packed }.rebuild()
        };
        let https = || Some(Scheme::HTTPS);
        assert!(head(https(), [b"a.example", b"/", b"name", b"value"]).is_ok());
        for (scheme, bad) in [
            (None, [&b"a.example"[..], b"/", b"name", b"value"]),
            (https(), [b"a example", b"/", b"name", b"value"]),
            (https(), [b"a.example", b"/\xff", b"name", b"value"]),
            (https(), [b"", b"/", b"name", b"value"]),
            (https(), [b"a.example", b"/", b"na me", b"value"]),
            (https(), [b"a.example", b"/", b"name", b"val\r\nue"]),
        ] {
            assert_eq!(head(scheme, bad).err(), Some(NotReplayable::Head));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

        #[test]
        fn any_head_is_the_same_in_the_replay(
            scheme in "https?|[a-z][a-z0-9+]{1,6}",
            authority in "([a-z]{1,4}(:[a-z]{1,3})?@)?[a-zA-Z0-9.-]{1,12}(:[0-9]{1,4})?",
            path in "(/[a-zA-Z0-9%._~é-]{0,6}){1,4}(\\?[a-z&=?/é]{0,8})?",
            absolute: bool,
            headers in prop::collection::vec(
                ("[a-c]|accept|cookie|x-[a-z]{1,9}", "[ -~\u{80}-\u{ff}\t]{0,20}", any::<bool>()),
                0..12,
            ),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        ) {
            let uri = if absolute { format!("{scheme}://{authority}{path}") } else { path };
            let mut request = Request::new(());
            // Some texts of this form don't parse.
            prop_assume!(uri.parse::<Uri>().is_ok());
            *request.uri_mut() = uri.parse().unwrap();
            for (name, value, sensitive) in headers {
                let mut value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                value.set_sensitive(sensitive);
                request.headers_mut().append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
            }
            for index in removed {
                let names: Vec<_> = request.headers().keys().cloned().collect();
                if !names.is_empty() {
                    request.headers_mut().remove(index.get(&names));
                }
            }
            let rebuilt = keep_and_rebuild(&request);
            prop_assert_eq!(representations(&rebuilt.uri), representations(request.uri()));
            prop_assert_eq!(listed(&rebuilt.headers), listed(request.headers()));
        }
    }
}
