//! The URL of a database, as libpq reads it.
//!
//! Nothing of a URL that can't be read is shown: any part of it may be a password that isn't percent-encoded.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use crate::error::{Problem, StoreErrorKind};

const DEFAULT_PORT: u16 = 5432;
/// The time for one address of a host. Unless the URL says more, a dead host leaves time for the next one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const PARAMETERS: &str = "application_name, connect_timeout, dbname, host, options, password, port, sslmode, \
                          sslrootcert, target_session_attrs and user";

/// A database: its servers, of which one is the primary.
#[derive(Clone)]
pub(super) struct Address {
    /// The URL without credentials and parameters.
    pub(super) name: String,
    /// One for each host.
    pub(super) hosts: Vec<Config>,
    pub(super) checks_host_name: bool,
    pub(super) roots: Roots,
}

/// The certificates of the authorities that a server's certificate may come from.
#[derive(Clone)]
pub(super) enum Roots {
    /// Those of Mozilla's list.
    Public,
    /// Those of a PEM file.
    File(PathBuf),
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self, Problem> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let rest = rest.ok_or_else(|| misconfigured("the URL doesn't begin with postgres:// or postgresql://"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = place.split_once('/').unwrap_or((place, ""));
        let mut parts = Parts::default();
        parts.read_authority(authority)?;
        if !database.is_empty() {
            parts.config.dbname(decode(database)?);
        }
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').ok_or_else(unreadable)?;
            parts.read_parameter(name, &decode(value)?)?;
        }
        parts.finish()
    }
}

/// What has been read of a URL.
#[derive(Default)]
struct Parts {
    config: Config,
    hosts: Vec<String>,
    ports: Vec<u16>,
    tls: Option<Tls>,
    roots: Option<Roots>,
    has_timeout: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Tls {
    Off,
    Chain,
    ChainAndName,
}

impl Parts {
    fn read_authority(&mut self, authority: &str) -> Result<(), Problem> {
        let hosts = match authority.split_once('@') {
            Some((user, hosts)) => {
                let (user, password) = user.split_once(':').map_or((user, None), |(user, word)| (user, Some(word)));
                if !user.is_empty() {
                    self.config.user(decode(user)?);
                }
                if let Some(password) = password {
                    self.config.password(decode(password)?);
                }
                hosts
            }
            None => authority,
        };
        for host in hosts.split(',').filter(|_| !hosts.is_empty()) {
            let (name, port) = match host.strip_prefix('[') {
                Some(rest) => {
                    let (ip, port) = rest.split_once(']').ok_or_else(unreadable)?;
                    (ip, port.strip_prefix(':').or(port.is_empty().then_some("")).ok_or_else(unreadable)?)
                }
                None => host.split_once(':').unwrap_or((host, "")),
            };
            self.hosts.push(host_name(decode(name)?)?);
            self.ports.push(read_port(port)?);
        }
        Ok(())
    }

    fn read_parameter(&mut self, name: &str, value: &str) -> Result<(), Problem> {
        match name {
            "user" => _ = self.config.user(value),
            "password" => _ = self.config.password(value),
            "dbname" => _ = self.config.dbname(value),
            "options" => _ = self.config.options(value),
            "application_name" => _ = self.config.application_name(value),
            "host" => self.hosts = value.split(',').map(|host| host_name(host.to_owned())).collect::<Result<_, _>>()?,
            "port" => self.ports = value.split(',').map(read_port).collect::<Result<_, _>>()?,
            "connect_timeout" => {
                let seconds = value.parse().map_err(|_| misconfigured("connect_timeout isn't a number of seconds"))?;
                self.config.connect_timeout(Duration::from_secs(seconds));
                self.has_timeout = seconds > 0;
            }
            "sslmode" => {
                self.tls = Some(match value {
                    "disable" => Tls::Off,
                    "verify-ca" => Tls::Chain,
                    "require" | "verify-full" => Tls::ChainAndName,
                    _ => {
                        let reason = "sslmode is neither disable, require, verify-ca nor verify-full: other modes may \
                                      send tokens in clear";
                        return Err(misconfigured(reason));
                    }
                });
            }
            "sslrootcert" if value == "system" => self.roots = Some(Roots::Public),
            "sslrootcert" => self.roots = Some(Roots::File(value.into())),
            "target_session_attrs" if matches!(value, "read-write" | "primary") => {}
            "target_session_attrs" => {
                return Err(misconfigured("target_session_attrs isn't read-write: the store has to write"));
            }
            _ => return Err(misconfigured(&format!("the URL has a parameter other than {PARAMETERS}"))),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Address, Problem> {
        if self.hosts.is_empty() {
            return Err(misconfigured("the URL names no host"));
        }
        let ports = match &*self.ports {
            [] => vec![DEFAULT_PORT; self.hosts.len()],
            [port] => vec![*port; self.hosts.len()],
            ports if ports.len() == self.hosts.len() => ports.to_vec(),
            _ => return Err(misconfigured("the URL has more or fewer ports than hosts")),
        };
        if self.config.get_user().is_none() {
            return Err(misconfigured("the URL names no user"));
        }
        if self.config.get_application_name().is_none() {
            self.config.application_name("tower-auth-refresh");
        }
        if !self.has_timeout {
            self.config.connect_timeout(CONNECT_TIMEOUT);
        }
        let hosts: Vec<_> = self.hosts.iter().zip(ports).map(|(host, port)| self.config_of(host, port)).collect();
        let name = name(&hosts);
        let checks_host_name = self.tls != Some(Tls::Chain);
        Ok(Address { name, hosts, checks_host_name, roots: self.roots.unwrap_or(Roots::Public) })
    }

    fn config_of(&self, host: &str, port: u16) -> Config {
        let mut config = self.config.clone();
        let is_encrypted = match self.tls {
            // libpq has no TLS over a socket of the file system either.
            _ if host.starts_with('/') => false,
            Some(tls) => tls != Tls::Off,
            None => !is_local(host),
        };
        config.ssl_mode(if is_encrypted { SslMode::Require } else { SslMode::Disable });
        config.host(host).port(port);
        config
    }
}

/// Returns the URL without credentials and parameters.
fn name(hosts: &[Config]) -> String {
    let mut name = String::from("postgres://");
    for (at, config) in hosts.iter().enumerate() {
        let separator = if at == 0 { "" } else { "," };
        for (host, port) in config.get_hosts().iter().zip(config.get_ports()) {
            // Writing to a string doesn't fail.
            let _ = match host {
                Host::Tcp(host) if host.contains(':') => write!(name, "{separator}[{host}]:{port}"),
                Host::Tcp(host) => write!(name, "{separator}{host}:{port}"),
                #[cfg(unix)]
                Host::Unix(path) => write!(name, "{separator}{}:{port}", path.display()),
            };
        }
    }
    let config = hosts.first();
    let _ =
        write!(name, "/{}", config.and_then(|config| config.get_dbname().or(config.get_user())).unwrap_or_default());
    name
}

/// Returns true if no other host takes part in a connection.
fn is_local(host: &str) -> bool {
    host.starts_with('/') || host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn host_name(host: String) -> Result<String, Problem> {
    // A host that holds anything else may be a part of a password.
    let is_name = |host: &str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte));
    if host.starts_with('/') || (!host.is_empty() && is_name(&host)) { Ok(host) } else { Err(unreadable()) }
}

fn read_port(port: &str) -> Result<u16, Problem> {
    if port.is_empty() { Ok(DEFAULT_PORT) } else { port.parse().map_err(|_| unreadable()) }
}

fn decode(text: &str) -> Result<String, Problem> {
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| unreadable())
}

fn unreadable() -> Problem {
    misconfigured("the URL can't be read; in user and password, special characters are percent-encoded")
}

fn misconfigured(reason: &str) -> Problem {
    Problem::new(StoreErrorKind::Misconfigured, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Address {
        Address::parse(url).map_err(|problem| problem.of(url)).unwrap()
    }

    #[test]
    fn a_url_names_hosts_a_database_and_credentials() {
        let address = parse("postgresql://ada:p%40ss@db1,db2:6000/app?application_name=gateway&connect_timeout=2");
        assert_eq!(address.name, "postgres://db1:5432,db2:6000/app");
        for (config, port) in address.hosts.iter().zip([5432, 6000]) {
            assert_eq!((config.get_user(), config.get_password()), (Some("ada"), Some(&b"p@ss"[..])));
            assert_eq!((config.get_ports(), config.get_ssl_mode()), (&[port][..], SslMode::Require));
            assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(2)));
            assert_eq!(config.get_application_name(), Some("gateway"));
        }
        assert_eq!(parse("postgres://ada@[::1]:7000").name, "postgres://[::1]:7000/ada");
        let by_parameters = parse("postgres:///app?host=/run/postgresql&user=ada&password=x&port=7000");
        assert_eq!(by_parameters.name, "postgres:///run/postgresql:7000/app");
        let by_one_port = parse("postgres:///app?host=db1,db2&user=ada&port=7000");
        assert_eq!(by_one_port.name, "postgres://db1:7000,db2:7000/app");
        let listed = parse("postgres://ada@db1?host=db1,db2&port=1,2&connect_timeout=0");
        assert_eq!(listed.name, "postgres://db1:1,db2:2/ada");
        assert_eq!(listed.hosts[0].get_connect_timeout(), Some(&CONNECT_TIMEOUT));
        assert_eq!(listed.hosts[0].get_application_name(), Some("tower-auth-refresh"));
        assert!(matches!(listed.roots, Roots::Public));
        assert!(matches!(parse("postgres://ada@db?sslrootcert=system").roots, Roots::Public));
        let file = parse("postgres://ada@db?sslrootcert=/etc/ca.pem").roots;
        assert!(matches!(file, Roots::File(path) if path.ends_with("ca.pem")));
        let by_parameters = parse("postgres://?host=db1,db2&user=ada&dbname=app&options=-csearch_path%3Dauth");
        assert_eq!(by_parameters.name, "postgres://db1:5432,db2:5432/app");
        for config in by_parameters.hosts {
            assert_eq!((config.get_dbname(), config.get_options()), (Some("app"), Some("-csearch_path=auth")));
        }
    }

    #[test]
    fn a_connection_is_encrypted_and_the_server_verified_unless_it_is_local_or_the_url_says_otherwise() {
        for (url, mode, checks_host_name) in [
            ("postgres://ada@db", SslMode::Require, true),
            ("postgres://ada@db?sslmode=require", SslMode::Require, true),
            ("postgres://ada@db?sslmode=verify-full", SslMode::Require, true),
            ("postgres://ada@db?sslmode=verify-ca", SslMode::Require, false),
            ("postgres://ada@db?sslmode=disable", SslMode::Disable, true),
            ("postgres://ada@localhost", SslMode::Disable, true),
            ("postgres://ada@127.0.0.1", SslMode::Disable, true),
            ("postgres://ada@localhost?sslmode=require", SslMode::Require, true),
            ("postgres://ada@%2Frun%2Fpostgresql?sslmode=require", SslMode::Disable, true),
        ] {
            let address = parse(url);
            assert_eq!((address.hosts[0].get_ssl_mode(), address.checks_host_name), (mode, checks_host_name), "{url}");
        }
        let standby = Address::parse("postgres://ada@db?target_session_attrs=any").err().unwrap().of("the URL");
        assert!(standby.to_string().contains("the store has to write"), "{standby}");
        for mode in ["prefer", "allow", "", "Require"] {
            assert!(Address::parse(&format!("postgres://ada@db?sslmode={mode}")).is_err(), "{mode}");
        }
    }

    #[test]
    fn nothing_of_a_url_that_cannot_be_read_is_shown() {
        for url in [
            "postgres://ada:s3cr3t@@db/app",
            "postgres://ada:s3/cr3t@db/app",
            "postgres://ada:s3?cr3t=@db/app",
            "postgres://ada:s3cr3t@db/app?s3cr3t=1",
            "postgres://ada:s3cr3t@db/app?s3cr3t",
            "postgres://ada:s3cr3t@db:s3cr3t/app",
            "postgres://ada:s3cr3t@[db/app",
            "postgres://ada:s3cr3t@db,db2/app?port=1,2,3",
            "postgres://ada:s3cr3t@/app",
            "postgres://:s3cr3t@db/app",
            "postgres://ada:s3cr3t%ff@db/app",
            "postgres://ada:s3cr3t@db/app?target_session_attrs=any",
            "postgres://ada:s3cr3t@db,,db2/app",
            "postgres://ada:x@d!b/s3cr3t",
            "postgres://ada:x@db:65536/s3cr3t",
            "postgres://ada:s3cr3t@db?connect_timeout=soon",
            "http://ada:s3cr3t@db/app",
        ] {
            let Err(problem) = Address::parse(url) else { panic!("{url} was read") };
            let error = problem.of("the URL");
            assert_eq!(error.kind(), StoreErrorKind::Misconfigured);
            for part in ["s3", "cr3t"] {
                assert!(!format!("{error} {error:?}").contains(part), "{url}: {error}");
            }
        }
    }
}
