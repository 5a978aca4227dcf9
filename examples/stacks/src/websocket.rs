//! A WebSocket's handshake by tokio-tungstenite, with a token from the session.

use http::Uri;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{ClientRequestBuilder, Error};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tower::BoxError;
use tower_auth_refresh::{Credential, Session};

/// Opens a WebSocket.
pub async fn connect(session: &Session, url: &Uri) -> Result<WebSocketStream<MaybeTlsStream<TcpStream>>, BoxError> {
    // [recipe: websocket]
    let handshake = async |credential: &Credential| {
        let bearer = format!("Bearer {}", credential.access_token().expose_secret());
        connect_async(ClientRequestBuilder::new(url.clone()).with_header("authorization", bearer)).await
    };
    let credential = session.credential().await?;
    let (socket, _) = match handshake(&credential).await {
        Err(Error::Http(refusal)) if refusal.status() == 401 => handshake(&session.renewed(&credential).await?).await?,
        outcome => outcome?,
    };
    // [end]
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::{SinkExt, StreamExt};
    use http::header::{CONNECTION, UPGRADE};
    use http::{Request, Response, StatusCode};
    use hyper_util::rt::TokioIo;
    use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
    use tokio_tungstenite::tungstenite::protocol::{Message, Role};
    use tower_auth_refresh::NotRefreshed;

    use super::*;
    use crate::support::{Answer, Body, Protocol, Stack, World, body, cases};

    struct WebSocket {
        session: Session,
        url: Uri,
    }

    impl Stack for WebSocket {
        type Protocol = Echo;

        async fn build(world: &World) -> Self {
            let url = world.api.origin().replace("http", "ws");
            Self { session: world.session.clone(), url: url.parse().unwrap() }
        }

        async fn call(&self, content: usize) -> Answer {
            match connect(&self.session, &self.url).await {
                Ok(mut socket) => echo(&mut socket, content).await,
                Err(error) if error.is::<NotRefreshed>() => Answer::Refused,
                Err(error) => match error.downcast_ref() {
                    Some(Error::Http(response)) => Answer::of(response.status().as_u16()),
                    _ => Answer::failed(error),
                },
            }
        }
    }

    async fn echo(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>, content: usize) -> Answer {
        let message = Message::text("a".repeat(content));
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
        Answer::Accepted
    }

    cases!(
        WebSocket: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host
    );

    #[tokio::test]
    async fn an_open_socket_outlives_its_token() {
        let world = World::new(Echo).await;
        let stack = WebSocket::build(&world).await;
        let mut socket = connect(&stack.session, &stack.url).await.unwrap();
        world.auth.expire_access_tokens();
        assert_eq!(echo(&mut socket, 10).await, Answer::Accepted);
        assert_eq!(world.auth.counters().refreshes, 0);
    }

    /// Sends each message back.
    #[derive(Default)]
    pub(crate) struct Echo;

    impl Protocol for Echo {
        async fn accept(&self, mut request: Request<Bytes>) -> Response<Body> {
            let key = derive_accept_key(request.headers()["sec-websocket-key"].as_bytes());
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let io = TokioIo::new(upgrade.await.unwrap());
                let (write, read) = WebSocketStream::from_raw_socket(io, Role::Server, None).await.split();
                // Ends with the client's socket.
                let _ = read.forward(write).await;
            });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(CONNECTION, "upgrade")
                .header(UPGRADE, "websocket")
                .header("sec-websocket-accept", key)
                .body(body(""))
                .unwrap()
        }
    }
}
