//! Pingora as a bare proxy: one header set, and two threads. The arguments are the address to listen on, and that of
//! the upstream.

use std::env;

use async_trait::async_trait;
use pingora_core::Result;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::RequestHeader;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

struct Proxy {
    upstream: HttpPeer,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(self.upstream.clone()))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        (): &mut (),
    ) -> Result<()> {
        if let Some(client) = session.client_addr().and_then(SocketAddr::as_inet) {
            request.insert_header("x-forwarded-for", client.ip().to_string())?;
        }
        Ok(())
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [listen, upstream] = &arguments[..] else { panic!("two arguments are needed") };
    let mut server = Server::new_with_opt_and_conf(None, ServerConf { threads: 2, ..ServerConf::default() });
    server.bootstrap();
    let proxy = Proxy { upstream: HttpPeer::new(upstream.as_str(), false, String::new()) };
    let mut service = http_proxy_service(&server.configuration, proxy);
    service.add_tcp(listen);
    server.add_service(service);
    server.run_forever();
}
