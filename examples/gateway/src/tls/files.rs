//! Reads certificates and keys from PEM files. The errors name the file and repeat nothing of its content.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Identity, InvalidSetting};

/// The maximum size of a file. The roots of an operating system are a quarter of it.
const MAX_SIZE: u64 = 1024 * 1024;

/// A certificate chain and its private key.
pub(super) struct Loaded {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// Reads the files of the settings `{prefix}-cert` and `{prefix}-key`.
pub(super) fn identity(prefix: &str, identity: &Identity) -> Result<Loaded, InvalidSetting> {
    let Identity { certificate, key } = identity;
    let chain = certificates(certificate).map_err(|reason| refused(&format!("{prefix}-cert"), certificate, &reason))?;
    let key = private_key(key).map_err(|reason| refused(&format!("{prefix}-key"), key, &reason))?;
    Ok(Loaded { chain, key })
}

/// Reads the root certificates of a setting.
pub(super) fn roots(flag: &str, file: &Path) -> Result<RootCertStore, InvalidSetting> {
    let refuse = |reason: &dyn fmt::Display| refused(flag, file, reason);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file).map_err(|reason| refuse(&reason))? {
        roots.add(certificate).map_err(|error| refuse(&error))?;
    }
    Ok(roots)
}

/// Returns the error of a setting that names this file.
pub(super) fn refused(flag: &str, file: &Path, reason: impl fmt::Display) -> InvalidSetting {
    InvalidSetting::of(flag, format_args!("{}: {reason}", file.display()))
}

/// Returns the content of a file of a setting.
pub(super) fn read(flag: &str, file: &Path) -> Result<Vec<u8>, InvalidSetting> {
    File::open(file).and_then(read_all).map_err(|error| refused(flag, file, error))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = File::open(file).and_then(read_all).map_err(|error| error.to_string())?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|_| "not a PEM file")?;
    if certificates.is_empty() { Err("there is no certificate in PEM".into()) } else { Ok(certificates) }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let opened = File::open(file).map_err(|error| error.to_string())?;
    check_private(&opened.metadata().map_err(|error| error.to_string())?)?;
    let pem = read_all(opened).map_err(|error| error.to_string())?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| "there is no private key in PEM, or it is encrypted".into())
}

/// Refuses a key that other users may read.
///
/// The rule is PostgreSQL's: a key of the own user is open to that user alone. One of root may be open to its group, as
/// those of Debian's `ssl-cert`, of systemd's credentials and of Kubernetes' secrets are.
fn check_private(metadata: &Metadata) -> Result<(), String> {
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let user = rustix::process::geteuid().as_raw();
    if owner != user && owner != 0 {
        return Err(format!("belongs to user {owner}, not to root or to user {user}, which the gateway runs as"));
    }
    let (forbidden, private) = if owner == 0 { (0o027, 640) } else { (0o077, 600) };
    if mode & forbidden != 0 {
        return Err(format!("is open to other users (mode {mode:04o}): run `chmod {private}` on it"));
    }
    Ok(())
}

fn read_all(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok(bytes)
}
