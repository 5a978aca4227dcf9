//! tonic, with a generated client.

use http::Request;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::ServiceBuilder;
use tower::util::BoxCloneSyncService;
use tower_auth_refresh::{AuthRefreshLayer, ChallengePolicy, Origin, Origins, ReplayBody, Session};

use notes::notes_client::NotesClient;

/// The generated code.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::pedantic,
    reason = "generated"
)]
pub mod notes {
    tonic::include_proto!("notes");
}

/// A channel that holds a session.
pub type Notes = NotesClient<BoxCloneSyncService<Request<Body>, http::Response<Body>, tonic::transport::Error>>;

/// Builds a client around a channel to this server.
#[must_use]
pub fn client(session: Session, origin: Origin, channel: Channel) -> Notes {
    // [recipe: tonic]
    let layer = AuthRefreshLayer::new(session, Origins::assume(origin)).challenge(ChallengePolicy::grpc());
    let channel = ServiceBuilder::new()
        .layer(BoxCloneSyncService::layer())
        .layer(layer)
        .map_request(|request: Request<ReplayBody<Body>>| request.map(Body::new))
        .service(channel);
    NotesClient::new(channel)
    // [end]
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use bytes::Bytes;
    use futures_util::{Stream, StreamExt, stream};
    use http::Response;
    use http_body_util::{BodyExt, Full};
    use tonic::transport::Endpoint;
    use tonic::{Code, Status, Streaming};
    use tower::{BoxError, ServiceExt};

    use super::notes::notes_server::{self, NotesServer};
    use super::notes::{Count, Note};
    use super::*;
    use crate::support::{self, Answer, Protocol, Stack, World, cases};

    impl Stack for Notes {
        type Protocol = Grpc;

        async fn build(world: &World) -> Self {
            let channel = Endpoint::from_shared(world.api.origin()).unwrap().connect_lazy();
            client(world.session.clone(), world.origin(), channel)
        }

        async fn call(&self, content: usize) -> Answer {
            match self.clone().add(Note { text: "a".repeat(content) }).await {
                Ok(note) => {
                    assert_eq!(note.into_inner().text.len(), content);
                    Answer::Accepted
                }
                Err(status) if status.code() == Code::Unauthenticated => Answer::Refused,
                Err(status) => Answer::failed(status),
            }
        }
    }

    cases!(
        Notes: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host, body_over_the_limit
    );

    #[tokio::test]
    async fn a_stream_of_requests_is_replayed() {
        let world = World::new(Grpc).await;
        world.auth.expire_access_tokens();
        let notes = stream::iter(["one", "two", "three"]).map(|text| Note { text: text.into() });
        let count = Notes::build(&world).await.add_all(notes).await.unwrap();
        assert_eq!(count.into_inner().count, 3);
        assert_eq!(world.auth.counters().refreshes, 1);
    }

    #[tokio::test]
    async fn a_stream_of_responses_begins_after_the_refresh() {
        let world = World::new(Grpc).await;
        world.auth.expire_access_tokens();
        let notes = Notes::build(&world).await.list(Note { text: "a".into() }).await.unwrap();
        let notes: Vec<_> = notes.into_inner().map(|note| note.unwrap().text).collect().await;
        assert_eq!(notes, ["a", "a"]);
        assert_eq!(world.auth.counters().refreshes, 1);
    }

    #[tokio::test]
    async fn a_late_unauthenticated_reaches_the_caller() {
        let world = World::new(Grpc).await;
        let notes = Notes::build(&world).await.list(Note { text: "late".into() }).await.unwrap();
        let notes: Vec<_> = notes.into_inner().map(|note| note.map_err(|status| status.code())).collect().await;
        assert_eq!(notes, [Ok(Note { text: "late".into() }), Err(Code::Unauthenticated)]);
        assert_eq!(world.auth.counters().refreshes, 0);
    }

    /// The generated server, behind the check of the token.
    #[derive(Default)]
    pub(crate) struct Grpc;

    impl Protocol for Grpc {
        async fn accept(&self, request: Request<Bytes>) -> Response<support::Body> {
            let response = NotesServer::new(Server).oneshot(request.map(Full::new)).await.unwrap();
            response.map(|body| body.map_err(BoxError::from).boxed_unsync())
        }

        fn refuse(&self, _: Response<support::Body>) -> Response<support::Body> {
            // Trailers-Only: the status is among the headers.
            let refusal = Status::unauthenticated("the token has expired").into_http::<Body>();
            refusal.map(|body| body.map_err(BoxError::from).boxed_unsync())
        }
    }

    struct Server;

    #[tonic::async_trait]
    impl notes_server::Notes for Server {
        async fn add(&self, request: tonic::Request<Note>) -> Result<tonic::Response<Note>, Status> {
            Ok(tonic::Response::new(request.into_inner()))
        }

        async fn add_all(&self, request: tonic::Request<Streaming<Note>>) -> Result<tonic::Response<Count>, Status> {
            let count = request.into_inner().count().await;
            Ok(tonic::Response::new(Count { count: count.try_into().unwrap() }))
        }

        type ListStream = Pin<Box<dyn Stream<Item = Result<Note, Status>> + Send>>;

        async fn list(&self, request: tonic::Request<Note>) -> Result<tonic::Response<Self::ListStream>, Status> {
            let note = request.into_inner();
            let second = if note.text == "late" { Err(Status::unauthenticated("too late")) } else { Ok(note.clone()) };
            Ok(tonic::Response::new(Box::pin(stream::iter([Ok(note), second]))))
        }
    }
}
