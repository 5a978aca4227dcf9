//! `object_store`, over the handle of reqwest.

use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};
use tower_auth_refresh_reqwest::ApiClient;

/// Builds a store on a bucket.
pub fn store(api: ApiClient, builder: GoogleCloudStorageBuilder) -> object_store::Result<GoogleCloudStorage> {
    // [recipe: object_store]
    builder.with_http_connector(api).with_bearer_token("").build()
    // [end]
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::header::ETAG;
    use http::{Request, Response};
    use object_store::path::Path;
    use object_store::{Error, ObjectStoreExt, PutPayload};

    use super::*;
    use crate::support::{Answer, Body, Protocol, Stack, World, body, cases};

    #[derive(Default)]
    pub(crate) struct Bucket;

    impl Protocol for Bucket {
        async fn accept(&self, _: Request<Bytes>) -> Response<Body> {
            Response::builder().header(ETAG, "1").body(body("")).unwrap()
        }
    }

    impl Stack for GoogleCloudStorage {
        type Protocol = Bucket;

        async fn build(world: &World) -> Self {
            let api = crate::reqwest::client(world.session.clone(), world.origin()).unwrap();
            let builder = GoogleCloudStorageBuilder::new().with_bucket_name("bucket");
            store(api, builder.with_base_url(&world.api.origin())).unwrap()
        }

        async fn call(&self, content: usize) -> Answer {
            match self.put(&Path::from("notes/1"), PutPayload::from(vec![b'a'; content])).await {
                Ok(_) => Answer::Accepted,
                Err(Error::Unauthenticated { .. }) => Answer::Refused,
                Err(error) => Answer::failed(error),
            }
        }
    }

    cases!(
        GoogleCloudStorage: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host, body_over_the_limit
    );
}
