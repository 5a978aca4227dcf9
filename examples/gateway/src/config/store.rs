//! [`Store`]: the place of the sessions' tokens.

use std::fmt;
use std::path::PathBuf;

use http::Uri;
use tower_auth_refresh::Origin;

use super::InvalidSetting;

/// The place where the sessions' tokens are kept.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Store {
    /// In memory: the sessions end with the process.
    #[default]
    Memory,
    /// In the files of this directory, for gateways on one host.
    File(PathBuf),
    /// In Redis or Valkey, by its URL.
    Redis(String),
    /// In a table of PostgreSQL, by its URL.
    Postgres(String),
}

impl Store {
    /// Reads `memory`, `file:DIR`, or a URL. Its password is in no error.
    pub(super) fn read(text: &str, allow_plain: bool) -> Result<Self, InvalidSetting> {
        let invalid = |reason: &str| InvalidSetting::of("--store", reason);
        let scheme = text.split(':').next().unwrap_or_default();
        // Sentinels on loopback may name a server elsewhere.
        let is_plain = scheme == "redis+sentinel" || (scheme == "redis" && !is_loopback(text));
        match scheme {
            "memory" if text == scheme => Ok(Self::Memory),
            "file" if text.len() > "file:".len() => Ok(Self::File(PathBuf::from(&text["file:".len()..]))),
            _ if is_plain && !allow_plain => {
                Err(invalid("tokens would be sent unencrypted: use rediss, or --allow-plain-http"))
            }
            "redis" | "rediss" | "redis+sentinel" | "rediss+sentinel" => Ok(Self::Redis(text.to_owned())),
            "postgres" | "postgresql" => Ok(Self::Postgres(text.to_owned())),
            _ => Err(invalid("expected memory, file:DIR, redis://…, rediss://… or postgres://…")),
        }
    }
}

fn is_loopback(url: &str) -> bool {
    let host = url.parse::<Uri>().ok().and_then(|url| url.host().map(str::to_owned));
    let origin = host.and_then(|host| Origin::parse_allowing_http(&format!("http://{host}")).ok());
    origin.is_some_and(|origin| origin.is_loopback())
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("Memory"),
            Self::File(directory) => f.debug_tuple("File").field(directory).finish(),
            // Their URLs may contain a password.
            Self::Redis(_) => f.write_str("Redis(..)"),
            Self::Postgres(_) => f.write_str("Postgres(..)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_memory_a_directory_or_the_url_of_a_server() {
        let read = |text| Store::read(text, false).unwrap();
        assert_eq!(read("memory"), Store::Memory);
        assert_eq!(read("file:/var/lib/gateway"), Store::File("/var/lib/gateway".into()));
        for url in [
            "redis://:secret@127.0.0.1:6379/0",
            "redis://localhost",
            "redis://[::1]:6379",
            "rediss://gateway:secret@redis.example/1",
            "rediss+sentinel://:secret@sentinel.example/main/0",
        ] {
            assert_eq!(read(url), Store::Redis(url.into()));
        }
        for url in ["postgres://gateway@db.example/gateway", "postgresql:///gateway?host=/run/postgresql"] {
            assert_eq!(read(url), Store::Postgres(url.into()));
        }
        let plain = "redis://redis.example";
        assert_eq!(Store::read(plain, true).unwrap(), Store::Redis(plain.into()));
    }

    #[test]
    fn an_invalid_store_is_refused_and_its_password_is_in_no_error() {
        for text in [
            "",
            "memory:",
            "disk",
            "file:",
            "/var/lib/gateway",
            "redis://redis.example",
            "redis://:hush@redis.example",
            "redis+sentinel://:hush@127.0.0.1/main/0",
            "mysql://gateway:hush@db.example",
            "REDISS://gateway:hush@redis.example",
        ] {
            let error = Store::read(text, false).unwrap_err().to_string();
            assert!(error.starts_with("--store: ") && !error.contains("hush"), "{error}");
        }
    }
}
