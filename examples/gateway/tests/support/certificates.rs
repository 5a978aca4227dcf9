//! Certificates of a private CA, and the ends of TLS that use them.

#[path = "../../../../crates/tower-auth-refresh-http/tests/it/certificates.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod of_http;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use gateway::{Identity, PeerTls};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub(crate) use self::of_http::Certificates;

/// The versions of TLS that the gateway speaks.
pub(crate) const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

impl Certificates {
    /// Makes `{name}.pem` and `{name}.key`, a certificate of the CA for a host or an address, such as `IP:127.0.0.1`. An
    /// expired one ended in 2020.
    pub(crate) fn issue(&self, name: &str, host: &str, is_expired: bool) {
        let settings = "[ca]\ndefault_ca = own\n[own]\ndatabase = index\nrand_serial = yes\ndefault_md = sha256\n\
                        policy = any\nunique_subject = no\n[any]\ncommonName = supplied\n";
        fs::write(self.path("ca.cnf"), settings).unwrap();
        fs::write(self.path("index"), "").unwrap();
        fs::write(self.path("names"), format!("subjectAltName={host}\n")).unwrap();
        let (key, request, certificate) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let ec = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "leaf.cnf"];
        self.openssl(&[&ec[..], &["-keyout", &key, "-out", &request, "-subj", "/CN=server"]].concat());
        let ca = ["ca", "-config", "ca.cnf", "-batch", "-notext", "-cert", "ca.pem", "-keyfile", "ca.key"];
        let end = if is_expired { "20200201000000Z" } else { "20491231235959Z" };
        let times = ["-startdate", "20200101000000Z", "-enddate", end, "-extfile", "names"];
        self.openssl(&[&ca[..], &["-in", &request, "-out", &certificate, "-outdir", "."], &times].concat());
    }

    /// Returns the path of a file.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder().join(file)
    }

    /// Returns the files of a certificate and its key.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        Identity { certificate: self.path(&format!("{name}.pem")), key: self.path(&format!("{name}.key")) }
    }

    /// Returns the settings of a gateway that trusts the CA.
    pub(crate) fn trusted(&self) -> PeerTls {
        PeerTls { ca: Some(self.path("ca.pem")), identity: None }
    }

    /// Returns the first certificate of a file.
    pub(crate) fn certificate(&self, file: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(&self.read(file)).unwrap()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate("ca.pem")).unwrap();
        roots
    }

    /// Returns the configuration of a client that trusts the CA.
    pub(crate) fn client_config(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth()
    }

    /// Returns the configuration of a server with a certificate of [`issue`](Self::issue). It may insist on a client
    /// certificate of the CA.
    pub(crate) fn server_config(&self, name: &str, requires_client: bool) -> ServerConfig {
        let provider = Arc::new(ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots().into(), provider);
        let builder = if requires_client {
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_slice(&self.read(&format!("{name}.key"))).unwrap();
        builder.with_single_cert(vec![self.certificate(&format!("{name}.pem"))], key).unwrap()
    }
}

/// Makes a handshake.
pub(crate) async fn connect(config: &Arc<ClientConfig>, address: SocketAddr) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::IpAddress(address.ip().into());
    TlsConnector::from(config.clone()).connect(name, stream).await.unwrap()
}

/// Serves TLS in front of a plain server and returns the port.
pub(crate) async fn terminate_tls(config: ServerConfig, plain_origin: &str) -> u16 {
    let plain = plain_origin.strip_prefix("http://").unwrap().to_owned();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, plain) = (acceptor.clone(), plain.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut server = TcpStream::connect(plain).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
            });
        }
    });
    port
}
