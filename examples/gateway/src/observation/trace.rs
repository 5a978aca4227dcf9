//! [`Trace`]: the numbers by which a request is found in the logs and traces of all servers on its way.

use std::hash::{BuildHasher, Hasher, RandomState};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header with the id of a request.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The headers of W3C Trace Context.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The longest id of a request that is passed on.
const MAX_REQUEST_ID: usize = 128;

/// The length of a `traceparent` of version 00.
const TRACEPARENT_LENGTH: usize = 55;

/// The flags that version 00 defines: sampled, and a random trace id (level 2).
const KNOWN_FLAGS: u8 = 0b11;

/// The flags of a trace that begins here: its id is random, and the servers behind are to record it.
const NEW_FLAGS: &[u8; 2] = b"03";

/// The id of a request, and its place in a trace.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    /// Printable, without spaces, quotes and the like.
    request_id: HeaderValue,
    /// The value of the header for the upstream.
    traceparent: [u8; TRACEPARENT_LENGTH],
    /// The span of the caller, if the trace doesn't begin here.
    parent: Option<[u8; 16]>,
}

impl Trace {
    /// Returns the trace of a request.
    ///
    /// A trace may begin at any client: nothing depends on it. An id names a request for an operator, so that only a
    /// trusted proxy may choose it; otherwise a client could hide behind the id of another one's request.
    pub(super) fn of(headers: &HeaderMap, from_trusted_proxy: bool) -> Self {
        let mut traceparent = [b'-'; TRACEPARENT_LENGTH];
        traceparent[..2].copy_from_slice(b"00");
        let parent = if let Some(caller) = single(headers, &TRACEPARENT).and_then(parse) {
            traceparent[3..35].copy_from_slice(caller.trace_id);
            write_hex(&[caller.flags], &mut traceparent[53..]);
            Some(caller.span_id)
        } else {
            write_hex(&random(), &mut traceparent[3..19]);
            write_hex(&random(), &mut traceparent[19..35]);
            traceparent[53..].copy_from_slice(NEW_FLAGS);
            None
        };
        write_hex(&random(), &mut traceparent[36..52]);
        let received = from_trusted_proxy.then(|| single(headers, &X_REQUEST_ID)).flatten();
        let request_id = match (received.filter(|id| is_safe(id)), parent) {
            (Some(id), _) => header(id),
            // A trace has many requests.
            (None, Some(_)) => random_id(),
            (None, None) => header(&traceparent[3..35]),
        };
        Self { request_id, traceparent, parent }
    }

    /// Returns the id of the request.
    pub(crate) fn request_id(&self) -> &str {
        text(self.request_id.as_bytes())
    }

    pub(super) fn trace_id(&self) -> &str {
        text(&self.traceparent[3..35])
    }

    /// Returns the id of the gateway's own span, of which the log line is the record.
    pub(super) fn span_id(&self) -> &str {
        text(&self.traceparent[36..52])
    }

    pub(super) fn parent(&self) -> Option<&str> {
        self.parent.as_ref().map(|parent| text(parent))
    }

    /// Sets the headers of a request to the upstream. The gateway's span is the parent of the upstream's.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        self.write_request_id(headers);
        headers.insert(TRACEPARENT, header(&self.traceparent));
        if self.parent.is_none() {
            // It belongs to the trace that has been replaced, if any.
            headers.remove(TRACESTATE);
        }
    }

    /// Sets the header with the id, in a response too.
    pub(super) fn write_request_id(&self, headers: &mut HeaderMap) {
        headers.insert(X_REQUEST_ID, self.request_id.clone());
    }
}

/// Checks if an id may be printed as it is.
fn is_safe(id: &[u8]) -> bool {
    let is_safe = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
    (1..=MAX_REQUEST_ID).contains(&id.len()) && id.iter().all(is_safe)
}

fn random_id() -> HeaderValue {
    let mut id = [0; 32];
    write_hex(&random(), &mut id[..16]);
    write_hex(&random(), &mut id[16..]);
    header(&id)
}

/// The parts of a valid `traceparent`.
struct Caller<'a> {
    trace_id: &'a [u8],
    span_id: [u8; 16],
    flags: u8,
}

/// Parses a `traceparent` of version 00, or the part of a later version that this one knows (§4.3).
fn parse(value: &[u8]) -> Option<Caller<'_>> {
    let (known, rest) = value.split_at_checked(TRACEPARENT_LENGTH)?;
    let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let (version, trace_id, span_id, flags) = (&known[..2], &known[3..35], &known[36..52], &known[53..]);
    let is_whole = rest.is_empty() || (version != b"00" && rest[0] == b'-');
    let is_valid = is_whole
        && [2, 35, 52].iter().all(|at| known[*at] == b'-')
        && [version, trace_id, span_id, flags].into_iter().all(is_hex)
        && version != b"ff"
        && [trace_id, span_id].iter().all(|id| id.iter().any(|byte| *byte != b'0'));
    if !is_valid {
        return None;
    }
    let flags = u8::from_str_radix(text(flags), 16).ok()? & KNOWN_FLAGS;
    Some(Caller { trace_id, span_id: span_id.try_into().ok()?, flags })
}

/// Returns the value of a header that is present once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes())
}

/// Returns 64 random bits: the hash of nothing, with keys that the standard library makes for each thread.
fn random() -> [u8; 8] {
    RandomState::new().build_hasher().finish().to_ne_bytes()
}

/// Writes two digits for each byte.
pub(super) fn write_hex(bytes: &[u8], digits: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(digits.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// Returns the header of text that has been checked, or made here.
fn header(ascii: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(ascii).unwrap_or(HeaderValue::from_static(""))
}

/// Returns text that has been checked, or made here.
fn text(ascii: &[u8]) -> &str {
    str::from_utf8(ascii).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn trace(pairs: &[(&HeaderName, &str)], from_trusted_proxy: bool) -> (Trace, HeaderMap) {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let trace = Trace::of(&headers, from_trusted_proxy);
        trace.write(&mut headers);
        (trace, headers)
    }

    #[test]
    fn a_trace_goes_on_with_the_gateways_own_span() {
        let caller = format!("00-{TRACE}-b7ad6b7169203331-01");
        let (trace, headers) = trace(&[(&TRACEPARENT, &caller), (&TRACESTATE, "a=b"), (&TRACESTATE, "c=d")], false);
        assert_eq!((trace.trace_id(), trace.parent()), (TRACE, Some("b7ad6b7169203331")));
        assert_ne!(trace.span_id(), "b7ad6b7169203331");
        assert_ne!(trace.request_id(), TRACE, "a trace has many requests");
        assert_eq!(headers[TRACEPARENT], format!("00-{TRACE}-{}-01", trace.span_id()));
        assert_eq!(headers.get_all(TRACESTATE).iter().count(), 2);
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        for (caller, flags) in [
            (format!("cc-{TRACE}-b7ad6b7169203331-ff"), "03"),
            (format!("01-{TRACE}-b7ad6b7169203331-02-what-the-future-will-be-like"), "02"),
            (format!("00-{TRACE}-b7ad6b7169203331-fc"), "00"),
        ] {
            let (trace, headers) = trace(&[(&TRACEPARENT, &caller)], false);
            assert_eq!(headers[TRACEPARENT], format!("00-{TRACE}-{}-{flags}", trace.span_id()), "{caller}");
        }
    }

    #[test]
    fn a_malformed_trace_is_replaced_and_its_state_dropped() {
        let zeros = "0".repeat(32);
        for caller in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-b7ad6b7169203331"),
            format!("00-{TRACE}-b7ad6b7169203331-1"),
            format!("00-{TRACE}-b7ad6b7169203331-01-more"),
            format!("00-{TRACE}-b7ad6b7169203331-01-"),
            format!("01-{TRACE}-b7ad6b7169203331-01.more"),
            format!("ff-{TRACE}-b7ad6b7169203331-01"),
            format!("00-{}-b7ad6b7169203331-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-b7ad6b716920333g-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{zeros}-b7ad6b7169203331-01"),
            format!("00_{TRACE}-b7ad6b7169203331-01"),
            format!("00-{TRACE}-b7ad6b7169203331-0\u{e9}"),
        ] {
            let (trace, headers) = trace(&[(&TRACEPARENT, &caller), (&TRACESTATE, "a=b")], false);
            assert_eq!(trace.parent(), None, "{caller}");
            assert_eq!(headers[TRACEPARENT], format!("00-{}-{}-03", trace.trace_id(), trace.span_id()));
            assert!(parse(headers[TRACEPARENT].as_bytes()).is_some_and(|made| made.trace_id != TRACE.as_bytes()));
            assert!(!headers.contains_key(TRACESTATE));
            assert_eq!(trace.request_id(), trace.trace_id());
        }
        let caller = format!("00-{TRACE}-b7ad6b7169203331-01");
        let (trace, headers) = trace(&[(&TRACEPARENT, &caller), (&TRACEPARENT, &caller)], false);
        assert_eq!((trace.parent(), headers.get_all(TRACEPARENT).iter().count()), (None, 1), "two callers");
    }

    #[test]
    fn a_request_keeps_the_safe_id_of_a_trusted_proxy() {
        let longest = "x".repeat(MAX_REQUEST_ID);
        for id in ["7", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "1-67891233/abc+def=:_.@", &longest] {
            let (trace, headers) = trace(&[(&X_REQUEST_ID, id)], true);
            assert_eq!((trace.request_id(), &headers[X_REQUEST_ID]), (id, &HeaderValue::from_str(id).unwrap()));
        }
    }

    #[test]
    fn an_id_that_is_unsafe_or_of_a_client_is_replaced() {
        let too_long = "x".repeat(MAX_REQUEST_ID + 1);
        for id in ["", "a b", "a\"b", "a\\b", "a\u{e9}", "a%0ab", "a;b", "a\tb", &too_long] {
            let (trace, headers) = trace(&[(&X_REQUEST_ID, id)], true);
            assert_eq!((trace.request_id().len(), headers[X_REQUEST_ID].len()), (32, 32), "{id}");
        }
        assert_ne!(trace(&[(&X_REQUEST_ID, "mine")], false).0.request_id(), "mine");
        assert_ne!(trace(&[(&X_REQUEST_ID, "a"), (&X_REQUEST_ID, "b")], true).0.request_id(), "a");
    }

    #[test]
    fn made_ids_differ() {
        let ids: std::collections::HashSet<_> = (0..1000)
            .flat_map(|_| {
                let trace = trace(&[], false).0;
                [trace.trace_id().to_owned(), trace.span_id().to_owned()]
            })
            .collect();
        assert_eq!(ids.len(), 2000);
    }
}
