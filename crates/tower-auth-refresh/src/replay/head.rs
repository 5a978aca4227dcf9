//! [`Head`]: all of a request but its body.

use bytes::{Buf, Bytes};
use http::header::{HeaderName, HeaderValue};
use http::uri::{self, Authority, PathAndQuery, Scheme, Uri};
use http::{Extensions, Method, Request, Version, request};

use super::NotReplayable;
use crate::scope::{Origins, Spelling};
use crate::target::Target;

/// The head of a request, kept for a replay.
///
/// Target and headers are packed into one buffer, which is one allocation; to clone them takes one for each value at
/// worst, and touches reference counts that other threads may share. A target that spells its origin as we do needs only
/// to say so. Unpacking is for the few that are replayed.
pub(crate) struct Head {
    method: Method,
    version: Version,
    extensions: Extensions,
    /// How the target spells its origin, which is packed only if it isn't as ours.
    spelling: Spelling,
    /// Scheme and authority, path and query, then a name and a value for each header; see [`pack`].
    packed: Vec<u8>,
}

impl Head {
    /// Keeps a copy, as the head stands now: before the token is in it.
    pub(crate) fn keep<B>(request: &Request<B>, spelling: Spelling) -> Self {
        let (uri, headers, extensions) = (request.uri(), request.headers(), request.extensions());
        // Room enough for ordinary heads, and little enough that allocators serve it from their quick lists. To add it
        // up first costs more than it saves.
        let mut packed = Vec::with_capacity(128 + 56 * headers.len());
        let target = uri.path_and_query().map_or("", PathAndQuery::as_str);
        match spelling {
            Spelling::Ours(_) => pack(&mut packed, target.as_bytes(), false),
            Spelling::Theirs => {
                pack(&mut packed, uri.scheme_str().unwrap_or_default().as_bytes(), false);
                pack(&mut packed, uri.authority().map_or("", Authority::as_str).as_bytes(), false);
                // Where there is none, `path_and_query` may still say `/`.
                let target = if uri.path().is_empty() { "" } else { target };
                pack(&mut packed, target.as_bytes(), false);
            }
        }
        for (name, value) in headers {
            pack(&mut packed, name.as_str().as_bytes(), false);
            pack(&mut packed, value.as_bytes(), value.is_sensitive());
        }
        let extensions = if extensions.is_empty() { Extensions::new() } else { extensions.clone() };
        Self { method: request.method().clone(), version: request.version(), extensions, spelling, packed }
    }

    /// Returns the target of the request, or of no request if the head can't be rebuilt either.
    pub(crate) fn target(&self, origins: &Origins) -> Target {
        let mut packed = Bytes::copy_from_slice(&self.packed);
        let uri = unpack_uri(&mut packed, self.spelling, origins).unwrap_or_default();
        let authority = uri.authority().map_or("", Authority::as_str);
        Target::new(&self.method, authority, uri.path())
    }

    /// The head again, ready for the token. `origins`: those that have told how it is spelled.
    ///
    /// # Errors
    ///
    /// Something in it isn't what its own parser accepts, as can be made with `unsafe` constructors.
    pub(crate) fn rebuild(self, origins: &Origins) -> Result<request::Parts, NotReplayable> {
        self.unpacked(origins).ok_or(NotReplayable::Head)
    }

    fn unpacked(self, origins: &Origins) -> Option<request::Parts> {
        let mut packed = Bytes::from(self.packed);
        let (mut head, ()) = Request::new(()).into_parts();
        head.method = self.method;
        head.version = self.version;
        head.extensions = self.extensions;
        head.uri = unpack_uri(&mut packed, self.spelling, origins)?;
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

/// Part by part, because as one text the asterisk of an absolute target wouldn't parse.
fn unpack_uri(packed: &mut Bytes, spelling: Spelling, origins: &Origins) -> Option<Uri> {
    let mut parts = uri::Parts::default();
    match spelling {
        Spelling::Ours(number) => {
            let (scheme, authority) = origins.get(number)?;
            parts.scheme = Some(scheme.clone());
            parts.authority = Some(authority.parse().ok()?);
        }
        Spelling::Theirs => {
            let (scheme, _) = unpack(packed)?;
            if !scheme.is_empty() {
                parts.scheme = Some(Scheme::try_from(&scheme[..]).ok()?);
            }
            let (authority, _) = unpack(packed)?;
            if !authority.is_empty() {
                parts.authority = Some(Authority::from_maybe_shared(authority).ok()?);
            }
        }
    }
    let (target, _) = unpack(packed)?;
    if !target.is_empty() {
        parts.path_and_query = Some(PathAndQuery::from_maybe_shared(target).ok()?);
    }
    Uri::from_parts(parts).ok()
}

/// Appends the length of `bytes`, with the flag as its lowest bit, and then the bytes.
fn pack(packed: &mut Vec<u8>, bytes: &[u8], flag: bool) {
    let len = 2 * bytes.len() as u64 + u64::from(flag);
    packed.extend_from_slice(&len.to_le_bytes());
    packed.extend_from_slice(bytes);
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
    use crate::Origin;

    /// Kept and rebuilt, whether or not its target names the origin as one of ours does.
    fn again(request: &Request<()>) -> request::Parts {
        let named = request.uri().scheme_str().zip(request.uri().authority());
        let ours =
            named.and_then(|(scheme, authority)| Origin::parse_allowing_http(&format!("{scheme}://{authority}")).ok());
        let ours = ours.map_or_else(Origins::default, Origins::from);
        let rebuilt = Head::keep(request, Spelling::Theirs).rebuild(&ours).unwrap();
        if let Some(spelling) = ours.covers(request.uri()) {
            let again = Head::keep(request, spelling).rebuild(&ours).unwrap();
            assert_eq!(told(&again.uri), told(&rebuilt.uri));
            assert_eq!(listed(&again.headers), listed(&rebuilt.headers));
            assert_eq!((again.method, again.version), (rebuilt.method.clone(), rebuilt.version));
        }
        rebuilt
    }

    /// What is told of a target in every way that the wire is written by.
    fn told(uri: &Uri) -> impl PartialEq + std::fmt::Debug {
        let path_and_query = uri.path_and_query().map(|path_and_query| path_and_query.as_str().to_owned());
        let (scheme, authority) = (uri.scheme_str().map(str::to_owned), uri.authority().map(ToString::to_string));
        (uri.to_string(), scheme, authority, path_and_query, uri.path().to_owned(), uri.query().map(str::to_owned))
    }

    /// All headers in their order, which is the order they are written in.
    fn listed(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue, bool)> {
        headers.iter().map(|(name, value)| (name.clone(), value.clone(), value.is_sensitive())).collect()
    }

    fn same_uri(uri: Uri) {
        let mut request = Request::new(());
        *request.uri_mut() = uri;
        let rebuilt = again(&request).uri;
        assert_eq!(told(&rebuilt), told(request.uri()));
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
        // `OPTIONS *` as HTTP/2 has it, no path at all, and nothing at all.
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
                let rebuilt = again(&request);
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
        headers.append("x-gone", HeaderValue::from_static("so that the order is not that of insertion"));
        headers.append("x-three", HeaderValue::from_static("3"));
        headers.remove("x-gone");
        headers.remove("x-two");
        let rebuilt = again(&request);
        assert_eq!(listed(&rebuilt.headers), listed(request.headers()));
        assert_eq!(rebuilt.headers.get_all("cookie").iter().filter(|value| value.is_sensitive()).count(), 1);
    }

    #[test]
    fn extensions_are_the_same_in_the_replay() {
        #[derive(Clone, Debug, PartialEq)]
        struct Trace(u64);
        assert!(again(&Request::new(())).extensions.is_empty());
        let request = Request::builder().extension(Trace(7)).body(()).unwrap();
        assert_eq!(again(&request).extensions.get(), Some(&Trace(7)));
    }

    #[test]
    fn a_head_larger_than_the_first_buffer_and_empty_heads_are_kept() {
        let value = "v".repeat(100_000);
        let request = Request::get("/").header("x-large", &value).header("x-after", "1").body(()).unwrap();
        assert_eq!(again(&request).headers, *request.headers());
        assert!(again(&Request::new(())).headers.is_empty());
    }

    #[test]
    fn a_head_that_its_own_parsers_would_not_accept_is_not_replayed() {
        let head = |parts: [&[u8]; 5]| {
            let mut packed = Vec::new();
            for part in parts {
                pack(&mut packed, part, false);
            }
            let (method, version, extensions) = (Method::GET, Version::HTTP_11, Extensions::new());
            Head { method, version, extensions, spelling: Spelling::Theirs, packed }.rebuild(&Origins::default())
        };
        assert!(head([b"https", b"a.example", b"/", b"name", b"value"]).is_ok());
        for bad in [
            [&b"1:"[..], b"a.example", b"/", b"name", b"value"],
            [b"https", b"a example", b"/", b"name", b"value"],
            [b"https", b"a.example", b"/\xff", b"name", b"value"],
            [b"https", b"", b"/", b"name", b"value"],
            [b"https", b"a.example", b"/", b"na me", b"value"],
            [b"https", b"a.example", b"/", b"name", b"val\r\nue"],
        ] {
            assert_eq!(head(bad).err(), Some(NotReplayable::Head));
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
            // Not every text of that form is a target.
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
            let rebuilt = again(&request);
            prop_assert_eq!(told(&rebuilt.uri), told(request.uri()));
            prop_assert_eq!(listed(&rebuilt.headers), listed(request.headers()));
        }
    }
}
