//! Certificates that openssl makes on the spot, of a private CA.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tower_auth_refresh_http::{AuthClient, RustlsBuilder};

/// A private CA, and two certificates that it has signed: of a server and of a client.
pub(crate) struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes certificates, or returns `None` without openssl. On CI a missing openssl is a failure.
    pub(crate) fn make(name: &str) -> Option<Self> {
        if Command::new("openssl").arg("version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "openssl is not installed");
            println!("skipped: openssl is not installed");
            return None;
        }
        let folder = std::env::temp_dir().join(format!("auth-http-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let this = Self { folder };
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        let ca = ["-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Private CA"];
        this.openssl(&[&["req"], &key[..], &ca[..]].concat());
        // The default configuration would make each of them a CA.
        fs::write(this.folder.join("leaf.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
        for (name, subject, extension) in [
            ("server", "/CN=server", "subjectAltName=DNS:auth.example,DNS:localhost,IP:127.0.0.1"),
            ("client", "/CN=billing", "extendedKeyUsage=clientAuth"),
        ] {
            let file = |suffix: &str| format!("{name}.{suffix}");
            let signed = ["-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", &file("key"), "-out", &file("pem")];
            let named = ["-subj", subject, "-addext", extension, "-config", "leaf.cnf"];
            this.openssl(&[&["req"], &key[..], &signed[..], &named[..]].concat());
        }
        Some(this)
    }

    pub(crate) fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).current_dir(&self.folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.folder.join(file)).unwrap()
    }

    /// A client that trusts the private CA alone.
    pub(crate) fn client(&self) -> RustlsBuilder {
        AuthClient::rustls_builder().only_added_roots().add_roots(&self.read("ca.pem"))
    }

    /// The server's configuration, which asks for a client certificate and doesn't insist.
    pub(crate) fn server(&self) -> ServerConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&self.read("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let chain = vec![CertificateDer::from_pem_slice(&self.read("server.pem")).unwrap()];
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
            .with_single_cert(chain, PrivateKeyDer::from_pem_slice(&self.read("server.key")).unwrap())
            .unwrap()
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
