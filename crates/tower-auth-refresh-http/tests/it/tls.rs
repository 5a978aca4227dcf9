//! The ready-made client over TLS: private roots, a client certificate, and proxies, with certificates of openssl.

use std::process::Command;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower_auth_refresh::{RefreshError, Tokens};
use tower_auth_refresh_http::{AuthClient, ClientAuth, OAuthRefresh, RustlsBuilder};

use crate::certificates::Certificates;
use crate::support::{access, cause, old_tokens, outcome};

async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Serves token responses on a free port. The access token tells whether a client certificate was presented.
async fn serve(certificates: &Certificates) -> u16 {
    let acceptor = TlsAcceptor::from(Arc::new(certificates.server()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let token = if stream.get_ref().1.peer_certificates().is_some() { "bound" } else { "bare" };
            head(&mut stream).await;
            let body = format!(r#"{{"access_token":"{token}","refresh_token":"r2"}}"#);
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    port
}

/// A proxy that tunnels every connection to one port, and the heads of the requests that it was sent.
async fn proxy(to: u16, answer: &'static str) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = head(&mut stream).await;
            seen.lock().unwrap().push(head);
            stream.write_all(answer.as_bytes()).await.unwrap();
            if answer.contains(" 200 ") {
                let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                tokio::spawn(async move { copy_bidirectional(&mut stream, &mut server).await });
            }
        }
    });
    (port, heads)
}

async fn refresh(client: RustlsBuilder, url: &str) -> Result<Tokens, RefreshError> {
    let grant = OAuthRefresh::new(client.build().unwrap(), url, ClientAuth::tls("billing")).unwrap();
    grant.refresh(&old_tokens()).await
}

#[tokio::test]
async fn a_private_ca_is_trusted_when_it_is_added_and_a_certificate_presented_when_there_is_one() {
    let Some(certificates) = Certificates::make("roots") else { return };
    let url = format!("https://127.0.0.1:{}/token", serve(&certificates).await);
    let untrusted = refresh(AuthClient::rustls_builder(), &url).await;
    assert_eq!(outcome(&untrusted), "unavailable", "nothing was sent");
    let added = AuthClient::rustls_builder().add_roots(&certificates.read("ca.pem"));
    assert_eq!(access(&refresh(added, &url).await.unwrap()), "bare");
    let bound =
        certificates.client().client_certificate(&certificates.read("client.pem"), &certificates.read("client.key"));
    assert!(!format!("{bound:?}").contains("BEGIN"));
    assert_eq!(access(&refresh(bound, &url).await.unwrap()), "bound");
}

#[tokio::test]
async fn a_proxy_sees_the_host_alone_and_is_given_its_own_password() {
    let Some(certificates) = Certificates::make("proxy") else { return };
    let (port, heads) = proxy(serve(&certificates).await, "HTTP/1.1 200 OK\r\n\r\n").await;
    let through = || certificates.client().proxy(format!("http://user:pass@127.0.0.1:{port}"));
    assert!(!format!("{:?}", through()).contains("pass"));
    assert_eq!(access(&refresh(through(), "https://auth.example/token?key=s3cret").await.unwrap()), "bare");
    let head = heads.lock().unwrap().remove(0);
    assert!(head.starts_with("CONNECT auth.example:443 HTTP/1.1\r\n"), "{head}");
    assert!(head.to_ascii_lowercase().contains("proxy-authorization: basic dxnlcjpwyxnz"), "{head}");
    assert!(!head.contains("s3cret") && !head.contains("old-refresh"), "{head}");

    // Hosts that aren't to be proxied can't be reached otherwise here, or are on loopback.
    for client in [through().no_proxy("example"), through().no_proxy("auth.example, 10.0.0.0/8")] {
        assert_eq!(outcome(&refresh(client, "https://auth.example/token").await), "unavailable");
    }
    let direct = format!("https://localhost:{}/token", serve(&certificates).await);
    assert_eq!(access(&refresh(through(), &direct).await.unwrap()), "bare");
    assert_eq!(heads.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_proxy_is_not_shown_the_client_certificate() {
    let Some(certificates) = Certificates::make("bare-proxy") else { return };
    let acceptor = TlsAcceptor::from(Arc::new(certificates.server()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        (head(&mut stream).await, stream.get_ref().1.peer_certificates().is_some())
    });
    let identity = (certificates.read("client.pem"), certificates.read("client.key"));
    let client = certificates.client().client_certificate(&identity.0, &identity.1);
    let client = client.proxy(format!("https://127.0.0.1:{port}"));
    assert_eq!(outcome(&refresh(client, "https://auth.example/token").await), "unavailable");
    let (head, is_shown) = asked.await.unwrap();
    assert!(head.starts_with("CONNECT auth.example:443") && !is_shown, "{head}");
}

#[tokio::test]
async fn a_tunnel_for_plain_http_leads_to_its_port() {
    let (port, heads) = proxy(0, "HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
    let client = AuthClient::rustls_builder().proxy(format!("http://127.0.0.1:{port}")).build().unwrap();
    let grant = OAuthRefresh::new(client.allow_plain_http(), "http://auth.example/token", ClientAuth::tls("billing"));
    assert_eq!(outcome(&grant.unwrap().refresh(&old_tokens()).await), "unavailable");
    let head = heads.lock().unwrap().remove(0);
    assert!(head.starts_with("CONNECT auth.example:80 "), "{head}");
}

/// Runs a test of this file by itself, with a proxy in the environment. Returns the value within that run.
fn within(proxy: &str, test: &str) -> Option<String> {
    if let Ok(inner) = std::env::var("TEST_PROXY") {
        return Some(inner);
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let child = child.args(["--exact", &format!("tls::{test}")]).env_remove("https_proxy").env_remove("no_proxy");
    let output = child.env("TEST_PROXY", proxy).env("HTTPS_PROXY", proxy).env_remove("NO_PROXY").output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
    None
}

#[test]
fn a_proxy_of_the_environment_that_cannot_be_read_is_named() {
    let test = "a_proxy_of_the_environment_that_cannot_be_read_is_named";
    for proxy in ["ftp://proxy.example", "proxy.example:3128", ""] {
        if let Some(inner) = within(proxy, test) {
            let built = AuthClient::rustls_builder().proxy_from_environment().build().map(|_| ());
            let message = built.map_err(|error| error.to_string());
            let expected = Err("a proxy's URL in the environment can't be read".to_owned());
            assert_eq!(message, if inner.starts_with("ftp") { expected } else { Ok(()) });
        }
    }
}

#[tokio::test]
async fn hosts_without_a_proxy_are_called_without_that_of_the_environment() {
    let test = "hosts_without_a_proxy_are_called_without_that_of_the_environment";
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    if within(&proxy, test).is_none() {
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        return;
    }
    let client = AuthClient::rustls_builder().proxy_from_environment().no_proxy("auth.invalid");
    assert_eq!(outcome(&refresh(client, "https://auth.invalid/token").await), "unavailable");
}

#[tokio::test]
async fn a_proxy_that_refuses_means_that_nothing_was_sent() {
    let Some(certificates) = Certificates::make("refusing") else { return };
    let (port, heads) = proxy(0, "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
    let client = certificates.client().proxy(format!("http://127.0.0.1:{port}"));
    let result = refresh(client, "https://auth.example/token").await;
    assert_eq!((outcome(&result).as_str(), heads.lock().unwrap().len()), ("unavailable", 1));
    assert_eq!(cause(&result.unwrap_err()).endpoint(), Some("https://auth.example/token"));
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let message = |builder: RustlsBuilder| builder.build().map(|_| ()).unwrap_err().to_string();
    let builder = AuthClient::rustls_builder;
    assert_eq!(message(builder().only_added_roots()), "there is no root certificate");
    assert_eq!(message(builder().add_roots(b"text")), "a root certificate can't be read");
    assert_eq!(message(builder().client_certificate(b"", b"")), "the client certificate can't be read");
    assert_eq!(message(builder().proxy("proxy.example:x")), "the proxy's URL is neither http:// nor https://");
    assert_eq!(message(builder().proxy("socks5://a:1")), "the proxy's URL is neither http:// nor https://");
    let Some(certificates) = Certificates::make("invalid") else { return };
    let (client, key) = (certificates.read("client.pem"), certificates.read("server.key"));
    let no_key = builder().client_certificate(&client, b"-");
    assert_eq!(message(no_key), "the key of the client certificate can't be read");
    let other_key = builder().client_certificate(&client, &key);
    assert_eq!(message(other_key), "the key isn't that of the client certificate");
    assert!(certificates.folder().exists());
}

#[test]
fn the_roots_of_the_platform_are_read() {
    // A system without any, a bare container, is an error and no silent trust in other roots.
    if let Err(error) = AuthClient::rustls_builder().platform_roots().build() {
        assert_eq!(error.to_string(), "there is no root certificate");
    }
}
