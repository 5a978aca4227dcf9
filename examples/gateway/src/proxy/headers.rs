//! Rewrites the headers that cross the gateway.

use http::header::{
    ALT_SVC, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, LOCATION,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version};
use tower_auth_refresh::Origin;

use super::path;
use crate::client_address::{ClientAddress, X_FORWARDED_FOR};
use crate::config::{PublicOrigin, StripHeaders};
use crate::cookie::SessionCookie;
use crate::fields;

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Hop-by-hop headers (RFC 9110 §7.6.1) and proxy authentication (§11.7).
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Headers that have their meaning for the gateway, which another spelling would bypass.
const NOT_SPELLED_OTHERWISE: [&str; 12] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "host",
    "origin",
    "proxy-authorization",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "x-request-id",
];

/// Fields that must not be trailers.
const NO_TRAILERS: [&str; 28] = [
    "age",
    "alt-svc",
    "authentication-info",
    "authorization",
    "cache-control",
    "clear-site-data",
    "cookie",
    "date",
    "expect",
    "expires",
    "host",
    "location",
    "max-forwards",
    "origin",
    "pragma",
    "range",
    "refresh",
    "retry-after",
    "set-cookie",
    "strict-transport-security",
    "traceparent",
    "tracestate",
    "trailer",
    "vary",
    "via",
    "www-authenticate",
    "x-frame-options",
    "x-request-id",
];

/// Headers in which proxies and identity providers describe the client. Upstreams may trust them, so a client must not
/// set them.
const IDENTITY: [&str; 36] = [
    "client-ip",
    "x-client-ip",
    "x-real-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "cf-connecting-ipv6",
    "fly-client-ip",
    "x-proxyuser-ip",
    "x-scheme",
    "front-end-https",
    "x-original-for",
    "x-original-host",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-login",
    "x-sso-user",
    "x-id-token",
    "x-access-token",
    "x-jwt-assertion",
    "x-user",
    "x-username",
    "x-email",
    "x-groups",
    "x-userinfo",
    "x-apigateway-api-userinfo",
    "x-endpoint-api-userinfo",
    "x-serverless-authorization",
    "x-client-cert",
    "x-arr-clientcert",
    "iv-user",
    "iv-groups",
    "sm-user",
    // CGI programs take it for the variable `HTTP_PROXY` (CVE-2016-5385).
    "proxy",
];

/// Prefixes of such headers.
const IDENTITY_PREFIXES: [&str; 33] = [
    "x-remote-",
    "remote-",
    // RFC 9440.
    "client-cert",
    "oidc-",
    "x-oidc-",
    "x-jwt-",
    "mellon-",
    "shib-",
    "x-amzn-mtls-",
    "x-auth-",
    "x-authenticated-",
    "x-authentik-",
    "x-webauth-",
    "x-user-",
    "x-consumer-",
    "x-credential-",
    "x-pomerium-",
    "x-vouch-",
    "x-ssl-",
    "ssl-client-",
    "x-client-cert-",
    "x-goog-authenticated-user-",
    "x-goog-iap-",
    "x-ms-client-principal",
    "x-ms-token-",
    "x-amzn-oidc-",
    "x-amz-cognito-",
    "x-appengine-",
    "x-azure-",
    "x-vercel-",
    "x-envoy-",
    "cf-access-",
    "tailscale-user-",
];

/// The number of headers that are added to a request: four here, two ids, the token and the host.
const ADDED: usize = 8;

/// The headers that all requests for the upstream have in common, formatted once.
pub(crate) struct CommonHeaders {
    /// The upstream's host.
    host: Option<HeaderValue>,
    /// Absent if each request names its own.
    forwarded_host: Option<HeaderValue>,
    forwarded_proto: HeaderValue,
}

impl CommonHeaders {
    pub(crate) fn new(upstream: &Origin, public: &PublicOrigin) -> Self {
        let authority = |origin: &Origin| {
            let origin = origin.to_string();
            let (_, authority) = origin.split_once("://")?;
            HeaderValue::from_str(authority).ok()
        };
        Self {
            host: authority(upstream),
            forwarded_host: match public {
                // Not the client's `Host`: the upstream may build links from it.
                PublicOrigin::Named(origin) => authority(origin),
                PublicOrigin::Loopback => None,
            },
            forwarded_proto: HeaderValue::from_static(if public.is_https() { "https" } else { "http" }),
        }
    }
}

/// Rewrites the headers of a client's request for the upstream.
pub(super) fn to_upstream<B>(
    request: &mut Request<B>,
    client: &ClientAddress,
    common: &CommonHeaders,
    strip: &StripHeaders,
) {
    let host = common.forwarded_host.clone().or_else(|| match request.headers().get(HOST) {
        Some(host) => Some(host.clone()),
        // HTTP/2 sends the host in a pseudo-header.
        None => request.uri().authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok()),
    });
    // RFC 9110 §7.6.3: the received protocol and this proxy's name.
    let via = match request.version() {
        Version::HTTP_2 => "2.0 gateway",
        Version::HTTP_10 => "1.0 gateway",
        _ => "1.1 gateway",
    };
    let headers = request.headers_mut();
    let is_hop_by_hop = hop_by_hop(headers);
    // The gateway has met the expectation itself.
    remove_all(headers, |name| {
        if *name == HOST {
            // Replaced below.
            return common.host.is_none();
        }
        *name == EXPECT || is_hop_by_hop(name) || is_credential(name, strip)
    });
    headers.reserve(ADDED);
    if let Some(host) = &common.host {
        headers.insert(HOST, host.clone());
    }
    headers.insert(X_FORWARDED_FOR, client.forwarded_for().clone());
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
    headers.insert(X_FORWARDED_PROTO, common.forwarded_proto.clone());
    headers.append(VIA, HeaderValue::from_static(via));
}

/// Removes from a client's trailers what the upstream could take for headers.
pub(super) fn trailers_to_upstream(trailers: &mut HeaderMap, strip: &StripHeaders) {
    let is_hop_by_hop = hop_by_hop(trailers);
    remove_all(trailers, |name| is_hop_by_hop(name) || is_credential(name, strip) || is_no_trailer(name));
}

/// Removes from an upstream's trailers what the client could take for headers.
pub(super) fn trailers_to_client(trailers: &mut HeaderMap) {
    let is_hop_by_hop = hop_by_hop(trailers);
    remove_all(trailers, |name| is_hop_by_hop(name) || is_no_trailer(name));
}

/// Checks if a field must be a header: fields for framing, routing, authentication and caching (RFC 9110 §6.5.1), and
/// those by which a browser is told what to do.
fn is_no_trailer(name: &HeaderName) -> bool {
    let name = name.as_str();
    ["access-control-", "content-", "cross-origin-", "sec-"].iter().any(|prefix| name.starts_with(prefix))
        || NO_TRAILERS.contains(&name)
}

/// Rewrites the headers of an upstream's response for the client.
pub(super) fn to_client(headers: &mut HeaderMap, upstream: &Uri, cookie: SessionCookie) {
    let is_hop_by_hop = hop_by_hop(headers);
    remove_all(headers, |name| is_hop_by_hop(name) || is_for_clients_of_the_upstream(name));
    // One walk, since most responses have few headers, and few of these.
    let (mut lengths, mut is_length, mut location, mut decides, mut sets_session) = (0, true, None, false, false);
    for (name, value) in &*headers {
        match *name {
            CONTENT_LENGTH => {
                lengths += 1;
                is_length &= value.as_bytes().iter().all(u8::is_ascii_digit);
            }
            LOCATION => location = location.or(Some(value)),
            CACHE_CONTROL => decides |= decides_sharing(value),
            SET_COOKIE => sets_session |= cookie.is_set_by(value),
            _ => {}
        }
    }
    // A browser has no token for the upstream itself.
    let location = location.and_then(|location| path::to_gateway(upstream, location.as_bytes()));
    if let Some(location) = location.and_then(|location| HeaderValue::from_bytes(location).ok()) {
        headers.insert(LOCATION, location);
    }
    // To HEAD, an upstream may send lengths that contradict each other: no valid response could have them.
    if lengths > 1 || !is_length {
        headers.remove(CONTENT_LENGTH);
    }
    // The response depends on a token, but a cache in front of the gateway sees no `Authorization` (RFC 9111 §3.5).
    if !decides {
        headers.append(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
    if sets_session {
        let kept: Vec<_> =
            headers.get_all(SET_COOKIE).iter().filter(|value| !cookie.is_set_by(value)).cloned().collect();
        headers.remove(SET_COOKIE);
        for value in kept {
            headers.append(SET_COOKIE, value);
        }
    }
}

/// Checks if a `Cache-Control` explicitly forbids or allows a shared cache to store the response.
fn decides_sharing(value: &HeaderValue) -> bool {
    value.as_bytes().split(|byte| *byte == b',').any(|directive| {
        let (name, fields) = fields::split_once(directive, b'=').unwrap_or((fields::trim(directive), b""));
        match &*name.to_ascii_lowercase() {
            // With field names, `private` covers only those fields.
            b"private" => fields.is_empty(),
            b"no-store" | b"public" | b"s-maxage" | b"must-revalidate" => true,
            _ => false,
        }
    })
}

fn remove_all(headers: &mut HeaderMap, predicate: impl Fn(&HeaderName) -> bool) {
    let names: Vec<_> = headers.keys().filter(|name| predicate(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Returns the predicate of the names that belong to this message's connection.
fn hop_by_hop(headers: &HeaderMap) -> impl Fn(&HeaderName) -> bool + use<> {
    // The usual options name no header.
    let is_name =
        |option: &&[u8]| ![&b"close"[..], b"keep-alive"].iter().any(|usual| option.eq_ignore_ascii_case(usual));
    let options = fields::list(headers, &CONNECTION).filter(is_name);
    let named: Vec<_> = options.filter_map(|name| HeaderName::from_bytes(name).ok()).collect();
    // The transfer coding overrides the length, which may be wrong (RFC 9112 §6.3).
    let has_wrong_length = headers.contains_key(TRANSFER_ENCODING);
    move |name| HOP_BY_HOP.contains(name) || named.contains(name) || (has_wrong_length && *name == CONTENT_LENGTH)
}

/// Checks for the names that are meant for clients of the upstream itself.
///
/// Its CORS policy is for clients with a token of their own, not for ones with a cookie. `Alt-Svc` names alternatives of
/// the upstream's host, which a browser would apply to the gateway's.
fn is_for_clients_of_the_upstream(name: &HeaderName) -> bool {
    *name == ALT_SVC || name.as_str().starts_with("access-control-")
}

fn is_credential(name: &HeaderName, strip: &StripHeaders) -> bool {
    let is = |name: &str| {
        name.contains("forwarded")
            || IDENTITY.contains(&name)
            || IDENTITY_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || strip.contains(name)
    };
    if [AUTHORIZATION, COOKIE].contains(name) {
        return true;
    }
    let name = name.as_str();
    if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return is(name);
    }
    // To CGI and WSGI upstreams, `x_real_ip` and `x.real.ip` are `x-real-ip`.
    let name = StripHeaders::normalized(name);
    is(&name) || NOT_SPELLED_OTHERWISE.contains(&&*name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn client_identity_headers_are_removed() {
        let sent = map(&[
            ("authorization", "Bearer stolen"),
            ("cookie", "session=1"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-user", "root"),
            ("x_forwarded_user", "root"),
            ("x-remote-user", "root"),
            ("x-real-ip", "1.2.3.4"),
            ("x-forwarded", "for=1.2.3.4"),
            ("x-original-forwarded-for", "1.2.3.4"),
            ("x-webauth-user", "root"),
            ("x-authentik-username", "root"),
            ("x-consumer-username", "root"),
            ("cf-access-authenticated-user-email", "root@example.com"),
            ("tailscale-user-login", "root"),
            ("ssl-client-verify", "SUCCESS"),
            ("client-ip", "1.2.3.4"),
            ("x-id-token", "eyJ"),
            ("x-access-token", "eyJ"),
            ("x-jwt-assertion", "eyJ"),
            ("x-sso-user", "root"),
            ("x-login", "root"),
            ("fly-client-ip", "1.2.3.4"),
            ("cf-connecting-ipv6", "::1"),
            ("x-proxyuser-ip", "1.2.3.4"),
            ("x-scheme", "https"),
            ("front-end-https", "on"),
            ("x-appengine-user-email", "root@example.com"),
            ("x-azure-clientip", "1.2.3.4"),
            ("x-vercel-ip-country", "FR"),
            ("x-amz-cognito-username", "root"),
            ("x-vercel-forwarded-for", "1.2.3.4"),
            ("do-forwarded-by", "root"),
            ("my_forwarded_user", "root"),
            ("my.forwarded.user", "root"),
            ("remote-user", "root"),
            ("remote_groups", "root"),
            ("client-cert", ":MII=:"),
            ("client-cert-chain", ":MII=:"),
            ("oidc_claim_sub", "root"),
            ("oidc-access-token", "eyJ"),
            ("proxy", "http://evil.example"),
            ("transfer_encoding", "chunked"),
            ("content_length", "5"),
            ("expect", "100-continue"),
            ("http2-settings", "AAMAAABk"),
            ("proxy-authorization", "Basic x"),
            ("connection", "keep-alive, X-Secret-Hop"),
            ("x-secret-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("host", "evil.example"),
            ("accept", "text/html"),
            ("x-requested-with", "fetch"),
        ]);
        let [upstream, public] = ["https://api.example.com", "https://app.example.com:8443"];
        let public = PublicOrigin::Named(Origin::parse(public).unwrap());
        let common = CommonHeaders::new(&Origin::parse(upstream).unwrap(), &public);
        let mut request = Request::get("/api/x").version(Version::HTTP_2).body(()).unwrap();
        *request.headers_mut() = sent;
        let client = ClientAddress::new("192.0.2.7".parse().unwrap());
        to_upstream(&mut request, &client, &common, &StripHeaders::default());
        let headers = request.headers();
        assert_eq!(
            names(headers),
            ["accept", "host", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-requested-with"]
        );
        assert_eq!(headers["host"], "api.example.com");
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-host"], "app.example.com:8443");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["via"], "2.0 gateway");
    }

    #[test]
    fn an_upstream_sets_cookies_except_the_session_cookie() {
        let mut headers = map(&[
            ("set-cookie", "theme=dark"),
            ("set-cookie", "session=fixed; Path=/"),
            ("set-cookie", "lang=fr"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("content-length", "3"),
        ]);
        to_client(&mut headers, &Uri::from_static("https://api.example.com"), SessionCookie::new(false));
        assert_eq!(names(&headers), ["cache-control", "content-length", "set-cookie"]);
        let cookies: Vec<_> = headers.get_all(SET_COOKIE).iter().collect();
        assert_eq!(cookies, ["theme=dark", "lang=fr"]);
    }
}
