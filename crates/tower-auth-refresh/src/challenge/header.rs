//! [`Challenge`]: the reader of `WWW-Authenticate`.

use std::borrow::Cow;
use std::fmt;

use http::header::{HeaderMap, WWW_AUTHENTICATE};

/// A challenge of a `WWW-Authenticate` header: a scheme and its parameters.
///
/// [`Challenge::all`] reads the challenges of a response (RFC 9110 §11.6.1):
///
/// ```
/// use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};
/// use tower_auth_refresh::challenge::Challenge;
///
/// let value = r#"Basic realm="api", Bearer error="insufficient_user_authentication", max_age="300""#;
/// let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, HeaderValue::from_static(value))]);
///
/// let bearer = Challenge::all(&headers).find(|challenge| challenge.is_scheme("bearer")).unwrap();
/// assert_eq!(bearer.error().as_deref(), Some("insufficient_user_authentication"));
/// assert_eq!(bearer.param("max_age").as_deref(), Some("300"));
/// assert_eq!(bearer.param("realm"), None);
/// ```
///
/// Values outside the grammar are read too, since many servers send them: parameters without commas between them
/// (Amazon API Gateway), a comma after the scheme (oauthlib), bytes that aren't ASCII, a quote that is never closed. In
/// doubt the reader sees fewer challenges: a scheme is a word at the start of the value or after a comma, without a `=`
/// after it, and nothing in quotes is a scheme. The `token68` of a challenge (`Negotiate YIIJ==`) is skipped.
///
/// A challenge borrows from the headers. Reading takes time linear in the length of the header, and allocates only for
/// text with escapes or bytes that aren't UTF-8.
#[derive(Clone, Copy)]
pub struct Challenge<'a> {
    scheme: &'a [u8],
    /// The part of the header's value from behind the scheme to the next challenge.
    params: &'a [u8],
}

impl<'a> Challenge<'a> {
    /// Reads all challenges in all `WWW-Authenticate` headers, in their order.
    ///
    /// Each header is read on its own, so that a malformed one leaves the others as they are.
    pub fn all(headers: &'a HeaderMap) -> impl Iterator<Item = Self> {
        headers.get_all(WWW_AUTHENTICATE).iter().flat_map(|value| Challenges::new(value.as_bytes()))
    }

    /// Returns the name of the scheme, as the server spells it.
    #[must_use]
    pub fn scheme(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.scheme)
    }

    /// Returns `true` if this is the name of the scheme.
    ///
    /// The comparison ignores case (RFC 9110 §11.1).
    #[must_use]
    pub fn is_scheme(&self, name: &str) -> bool {
        self.scheme.eq_ignore_ascii_case(name.as_bytes())
    }

    /// Returns the value of the first parameter of this name.
    ///
    /// The comparison ignores case (RFC 9110 §11.2). The value is without quotes and escapes.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<Cow<'a, str>> {
        self.params_named(name).next()
    }

    /// Returns the error code (RFC 6750 §3).
    ///
    /// This is the value of the first parameter `error` that isn't empty, as the server spells it.
    #[must_use]
    pub fn error(&self) -> Option<Cow<'a, str>> {
        self.errors().next()
    }

    /// Returns the names and values of all parameters, in their order.
    ///
    /// The values are without quotes and escapes.
    pub fn params(&self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> {
        self.pairs().map(|(name, value)| (String::from_utf8_lossy(name), unescaped(value)))
    }

    /// Returns all error codes; more than one is against RFC 6750 §3.
    pub(super) fn errors(&self) -> impl Iterator<Item = Cow<'a, str>> {
        self.params_named("error").filter(|code| !code.is_empty())
    }

    fn params_named(&self, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
        self.pairs().filter(|(of, _)| of.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| unescaped(value))
    }

    fn pairs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        Items { rest: self.params, scheme_may_follow: false }.filter_map(|item| match item {
            Item::Param { name, value } => Some((name, value)),
            Item::Scheme(_) | Item::Other => None,
        })
    }
}

impl fmt::Debug for Challenge<'_> {
    /// Shows no parameter except the error code: the others are free text, in which a server may repeat a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenge")
            .field("scheme", &self.scheme())
            .field("error", &self.error())
            .finish_non_exhaustive()
    }
}

/// The challenges in one value.
struct Challenges<'a> {
    items: Items<'a>,
    /// The scheme of the next challenge, which has been read already.
    scheme: Option<&'a [u8]>,
}

impl<'a> Challenges<'a> {
    fn new(value: &'a [u8]) -> Self {
        let mut items = Items { rest: value, scheme_may_follow: true };
        let scheme = items.skip_to_scheme().1;
        Self { items, scheme }
    }
}

impl<'a> Iterator for Challenges<'a> {
    type Item = Challenge<'a>;

    fn next(&mut self) -> Option<Challenge<'a>> {
        let scheme = self.scheme.take()?;
        let params = self.items.rest;
        let (len, next) = self.items.skip_to_scheme();
        self.scheme = next;
        Some(Challenge { scheme, params: &params[..len] })
    }
}

/// A part of a value.
enum Item<'a> {
    Scheme(&'a [u8]),
    /// The value is without its quotes, but with its escapes.
    Param {
        name: &'a [u8],
        value: &'a [u8],
    },
    /// `token68`, or text that the grammar doesn't allow.
    Other,
}

/// The parts of a value, or of the parameters of one challenge.
struct Items<'a> {
    rest: &'a [u8],
    /// A scheme follows on the start or a comma alone.
    scheme_may_follow: bool,
}

impl<'a> Items<'a> {
    /// Reads to the next scheme. Returns the length of the text before it and the scheme, if there is one.
    fn skip_to_scheme(&mut self) -> (usize, Option<&'a [u8]>) {
        let len = self.rest.len();
        loop {
            match self.next() {
                Some(Item::Scheme(name)) => return (len - self.rest.len() - name.len(), Some(name)),
                Some(Item::Param { .. } | Item::Other) => {}
                None => return (len, None),
            }
        }
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        loop {
            let (&first, tail) = self.rest.split_first()?;
            match first {
                b' ' | b'\t' => self.rest = tail,
                b',' => {
                    self.rest = tail;
                    self.scheme_may_follow = true;
                }
                b'"' => {
                    (_, self.rest) = split_quoted(tail);
                    self.scheme_may_follow = false;
                    return Some(Item::Other);
                }
                _ => break,
            }
        }
        let scheme_may_follow = std::mem::take(&mut self.scheme_may_follow);
        let (word, tail) = split_word(self.rest, b" \t,\"=");
        let Some(tail) = tail.trim_ascii_start().strip_prefix(b"=") else {
            self.rest = tail;
            return Some(if scheme_may_follow { Item::Scheme(word) } else { Item::Other });
        };
        let tail = tail.trim_ascii_start();
        if let Some(tail) = tail.strip_prefix(b"\"") {
            let value;
            (value, self.rest) = split_quoted(tail);
            return Some(Item::Param { name: word, value });
        }
        let (value, rest) = split_word(tail, b" \t,\"");
        self.rest = rest;
        // RFC 9110 §11.2: `token68` ends in any number of `=`.
        let is_padding = value.iter().all(|&byte| byte == b'=');
        Some(if is_padding { Item::Other } else { Item::Param { name: word, value } })
    }
}

/// Splits the text at the first of the `ends`, which is left in the rest.
fn split_word<'a>(text: &'a [u8], ends: &[u8]) -> (&'a [u8], &'a [u8]) {
    text.split_at(text.iter().position(|byte| ends.contains(byte)).unwrap_or(text.len()))
}

/// Splits the text at the closing quote, which is dropped. A quote that is never closed extends to the end.
fn split_quoted(text: &[u8]) -> (&[u8], &[u8]) {
    let mut escaped = false;
    let end = text.iter().position(|&byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    });
    end.map_or((text, &[]), |end| (&text[..end], &text[end + 1..]))
}

/// RFC 9110 §5.6.4: a recipient reads a quoted pair as the octet after the backslash.
fn unescaped(text: &[u8]) -> Cow<'_, str> {
    if !text.contains(&b'\\') {
        return String::from_utf8_lossy(text);
    }
    let mut octets = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        octets.extend(if byte == b'\\' { bytes.next() } else { Some(&byte) });
    }
    Cow::Owned(String::from_utf8_lossy(&octets).into_owned())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http_auth::ChallengeParser;
    use proptest::prelude::*;

    use super::super::tests::value;
    use super::*;

    type Read = Vec<(String, Vec<(String, String)>)>;

    fn read(value: &[u8]) -> Read {
        let of = |challenge: Challenge<'_>| {
            let params = challenge.params().map(|(name, value)| (name.into_owned(), value.into_owned()));
            (challenge.scheme().into_owned(), params.collect())
        };
        Challenges::new(value).map(of).collect()
    }

    #[test]
    fn a_value_is_read_as_its_challenges_and_their_parameters() {
        for (value, challenges) in [
            ("", &[][..]),
            ("error=invalid_token, \"x\"", &[]),
            ("Bearer", &[("Bearer", &[][..])]),
            (", ,Bearer , ", &[("Bearer", &[])]),
            (r#"Bearer realm="a, b", scope="""#, &[("Bearer", &[("realm", "a, b"), ("scope", "")])]),
            (r#"Bearer, error="invalid_token""#, &[("Bearer", &[("error", "invalid_token")])]),
            (r#"Bearer scope="" error="x"a=b"#, &[("Bearer", &[("scope", ""), ("error", "x"), ("a", "b")])]),
            (r#"Bearer realm = "C:\\ \"x\"", a = b"#, &[("Bearer", &[("realm", r#"C:\ "x""#), ("a", "b")])]),
            ("Bearer error=\"never closed, Basic", &[("Bearer", &[("error", "never closed, Basic")])]),
            ("Bearer realm=\"ends in an escape\\", &[("Bearer", &[("realm", "ends in an escape")])]),
            ("Bearer realm=https://a.example/?b=c", &[("Bearer", &[("realm", "https://a.example/?b=c")])]),
            ("Bearer realm=\"bücher\", ü", &[("Bearer", &[("realm", "bücher")]), ("ü", &[])]),
            ("Negotiate YIIJ==, Basic realm=x", &[("Negotiate", &[]), ("Basic", &[("realm", "x")])]),
            ("Negotiate YIIJ=,NTLM YIIJ", &[("Negotiate", &[]), ("NTLM", &[])]),
            (r#"Basic realm="x" Bearer error=y"#, &[("Basic", &[("realm", "x"), ("error", "y")])]),
            ("Basic, DPoP algs=\"ES256 EdDSA\"", &[("Basic", &[]), ("DPoP", &[("algs", "ES256 EdDSA")])]),
        ] {
            let owned = |(scheme, params): &(&str, &[(&str, &str)])| {
                let params = params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
                ((*scheme).to_owned(), params.collect())
            };
            assert_eq!(read(value.as_bytes()), challenges.iter().map(owned).collect::<Read>(), "{value}");
        }
        // Bytes that aren't UTF-8 are replaced.
        assert_eq!(
            read(b"B\xff a=\"\xff\\\xfe\""),
            [("B\u{fffd}".into(), vec![("a".into(), "\u{fffd}\u{fffd}".into())])]
        );
    }

    #[test]
    fn names_are_case_insensitive_and_the_first_of_several_parameters_is_returned() {
        let headers = HeaderMap::from_iter([
            (WWW_AUTHENTICATE, HeaderValue::from_static("Negotiate")),
            (WWW_AUTHENTICATE, HeaderValue::from_static("bearer ERROR=\"\", Error=one, error=two, Realm=x")),
        ]);
        let challenges: Vec<_> = Challenge::all(&headers).collect();
        let [negotiate, bearer] = challenges[..] else { panic!("{challenges:?}") };
        assert!(negotiate.is_scheme("NEGOTIATE") && !negotiate.is_scheme("Bearer") && !negotiate.is_scheme(""));
        assert_eq!((negotiate.error(), negotiate.param("realm")), (None, None));
        assert!(bearer.is_scheme("Bearer"));
        assert_eq!(bearer.scheme(), "bearer");
        assert_eq!(bearer.error().as_deref(), Some("one"));
        assert_eq!(bearer.param("error").as_deref(), Some(""));
        assert_eq!(bearer.param("realm").as_deref(), Some("x"));
        assert_eq!(format!("{bearer:?}"), r#"Challenge { scheme: "bearer", error: Some("one"), .. }"#);
    }

    /// Reads a value by the grammar; `None` if the value isn't within it, or holds a challenge in `token68`.
    fn read_by_the_grammar(value: &HeaderValue) -> Option<Read> {
        let of = |challenge: http_auth::ChallengeRef<'_>| {
            let params = challenge.params.iter().map(|(name, value)| ((*name).to_owned(), value.to_unescaped()));
            (challenge.scheme.to_owned(), params.collect())
        };
        ChallengeParser::new(value.to_str().ok()?).map(|challenge| challenge.ok().map(of)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn within_the_grammar_the_reader_finds_what_a_parser_of_the_grammar_finds(value in value()) {
            if let Some(challenges) = read_by_the_grammar(&value) {
                prop_assert_eq!(read(value.as_bytes()), challenges);
            }
        }
    }
}
