//! The URL of a Redis server, or of the sentinels that know it.

use std::fmt;

use zeroize::Zeroizing;

use crate::error::{Problem, StoreErrorKind};

const SERVER_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// A URL, read. Shown without its credentials.
pub(super) struct Address {
    pub(super) uses_tls: bool,
    /// A server, or the sentinels.
    pub(super) hosts: Vec<Host>,
    /// The name by which the sentinels know the server. `None`: the host is the server.
    pub(super) master: Option<String>,
    pub(super) database: i64,
    pub(super) user: Option<String>,
    pub(super) password: Option<Zeroizing<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) port: u16,
}

impl Address {
    /// Reads a URL. The error repeats nothing of the URL, which may hold a password in any place.
    pub(super) fn parse(url: &str) -> Result<Self, Problem> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| invalid("it has no scheme"))?;
        let (uses_tls, has_sentinels) = match scheme {
            "redis" => (false, false),
            "rediss" => (true, false),
            "redis+sentinel" => (false, true),
            "rediss+sentinel" => (true, true),
            _ => {
                let reason = "its scheme isn't redis, rediss, redis+sentinel or rediss+sentinel";
                return Err(invalid(reason));
            }
        };
        if rest.contains(['?', '#']) {
            return Err(invalid("it has a query or a fragment; write `%3F` and `%23` in a password"));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(credentials, hosts)| (Some(credentials), hosts));
        let (user, password) = match credentials.map(|text| text.split_once(':').unwrap_or((text, ""))) {
            Some((user, password)) => (decode(user)?, decode(password)?),
            None => (Zeroizing::default(), Zeroizing::default()),
        };
        if !user.is_empty() && password.is_empty() {
            return Err(invalid("it has a user without a password; a password alone is written `:password@`"));
        }
        let default_port = if has_sentinels { SENTINEL_PORT } else { SERVER_PORT };
        let hosts = hosts.split(',').map(|host| Host::parse(host, default_port)).collect::<Result<Vec<_>, _>>()?;
        let (master, database) = if has_sentinels {
            let (master, database) = path.split_once('/').unwrap_or((path, ""));
            if master.is_empty() {
                return Err(invalid("it has no name of the server that the sentinels watch, as in `…/main`"));
            }
            (Some(String::clone(&*decode(master)?)), database)
        } else if hosts.len() > 1 {
            return Err(invalid("it has several hosts, which only `redis+sentinel` has"));
        } else {
            (None, path)
        };
        let database = match database {
            "" => 0,
            number => number.parse::<u32>().map_err(|_| invalid("its database isn't a number"))?.into(),
        };
        let user = Some(String::clone(&user)).filter(|user| !user.is_empty());
        let password = Some(password).filter(|password| !password.is_empty());
        Ok(Self { uses_tls, hosts, master, database, user, password })
    }
}

impl Host {
    fn parse(text: &str, default_port: u16) -> Result<Self, Problem> {
        let port_at = match text.rfind(']') {
            Some(end) => text[end..].find(':').map(|at| end + at),
            None => text.rfind(':'),
        };
        let (name, port) = match port_at {
            Some(at) => (&text[..at], text[at + 1..].parse().map_err(|_| invalid("a port isn't a number"))?),
            None => (text, default_port),
        };
        // An IPv6 address is in brackets.
        let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        if name.is_empty() {
            return Err(invalid("it has no host"));
        }
        Ok(Self { name: name.to_owned(), port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.uses_tls { "s" } else { "" };
        let sentinels = if self.master.is_some() { "+sentinel" } else { "" };
        write!(f, "redis{tls}{sentinels}://")?;
        for (at, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if at == 0 { "" } else { "," })?;
        }
        if let Some(master) = &self.master {
            write!(f, "/{master}")?;
        }
        write!(f, "/{}", self.database)
    }
}

/// Replaces `%3A` and the like.
fn decode(text: &str) -> Result<Zeroizing<String>, Problem> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or_else(|| invalid("a `%` isn't followed by two hexadecimal digits"))?);
        rest = &after[2..];
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| invalid("its credentials aren't UTF-8"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn invalid(reason: &str) -> Problem {
    Problem::new(StoreErrorKind::Misconfigured, format!("the URL is invalid: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_shown_without_its_credentials() {
        for (url, shown, master, database, user, password) in [
            ("redis://cache", "redis://cache:6379/0", None, 0, None, None),
            ("redis://:s3cret@cache:7000/2", "redis://cache:7000/2", None, 2, None, Some("s3cret")),
            ("rediss://ada:a%40b%3A%2F@[::1]:7000", "rediss://[::1]:7000/0", None, 0, Some("ada"), Some("a@b:/")),
            ("redis://ada:s3@cret@[::1]/", "redis://[::1]:6379/0", None, 0, Some("ada"), Some("s3@cret")),
            (
                "rediss+sentinel://:s3cret@a,b:7001,[fe80::1]/main/3",
                "rediss+sentinel://a:26379,b:7001,[fe80::1]:26379/main/3",
                Some("main"),
                3,
                None,
                Some("s3cret"),
            ),
            ("redis+sentinel://a/main", "redis+sentinel://a:26379/main/0", Some("main"), 0, None, None),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.uses_tls, url.starts_with("rediss"));
            assert_eq!((address.master.as_deref(), address.database), (master, database));
            let password_read = address.password.as_ref().map(|password| password.as_str());
            assert_eq!((address.user.as_deref(), password_read), (user, password));
        }
    }

    #[test]
    fn an_invalid_url_is_refused_and_nothing_of_it_repeated() {
        for (url, reason) in [
            ("s3cret", "no scheme"),
            ("s3cret://cache", "scheme"),
            ("redis://:s3cret@", "no host"),
            ("redis://s3cret@cache", "without a password"),
            ("redis://:s3cret@cache:port", "port"),
            ("redis://:s3cret@cache:70000", "port"),
            ("redis://:s3cret%4@cache", "hexadecimal"),
            ("redis://:s3cret%ff@cache", "UTF-8"),
            ("redis://:s3cret?@cache", "query"),
            ("redis://:s3cret#@cache", "fragment"),
            ("redis://:s3cret/@cache", "port"),
            ("redis://:s3cret@cache/main", "database"),
            ("redis://:s3cret@a,b", "several hosts"),
            ("redis+sentinel://:s3cret@a,b", "name of the server"),
        ] {
            let Err(problem) = Address::parse(url) else { panic!("{url} was read") };
            let error = problem.of("Redis");
            assert_eq!(error.kind(), StoreErrorKind::Misconfigured);
            assert!(error.to_string().contains(reason) && !format!("{error:?}").contains("s3cret"), "{url}: {error}");
        }
    }
}
