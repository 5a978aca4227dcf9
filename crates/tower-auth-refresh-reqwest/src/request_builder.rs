//! [`RequestBuilder`]: reqwest's builder, bound to an [`ApiClient`].

use std::fmt::{self, Display};
use std::future::Future;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Version};
use serde_core::Serialize;

use crate::api_client::ApiClient;

/// A request under construction, which [`send`](Self::send) sends through an [`ApiClient`].
///
/// The methods are those of [`reqwest::RequestBuilder`].
#[must_use = "a request is sent by `send`"]
pub struct RequestBuilder {
    api: ApiClient,
    inner: reqwest::RequestBuilder,
}

impl RequestBuilder {
    pub(crate) fn new(api: ApiClient, inner: reqwest::RequestBuilder) -> Self {
        Self { api, inner }
    }

    fn map(self, change: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder) -> Self {
        Self { inner: change(self.inner), ..self }
    }

    /// Adds a header.
    pub fn header<K, V>(self, name: K, value: V) -> Self
    where
        HeaderName: TryFrom<K, Error: Into<http::Error>>,
        HeaderValue: TryFrom<V, Error: Into<http::Error>>,
    {
        self.map(|inner| inner.header(name, value))
    }

    /// Sets headers, which replace those of the same names.
    pub fn headers(self, headers: HeaderMap) -> Self {
        self.map(|inner| inner.headers(headers))
    }

    /// Sets the caller's own credentials: the request then passes untouched.
    pub fn basic_auth(self, username: impl Display, password: Option<impl Display>) -> Self {
        self.map(|inner| inner.basic_auth(username, password))
    }

    /// Sets a token of the caller's own: the request then passes untouched.
    pub fn bearer_auth(self, token: impl Display) -> Self {
        self.map(|inner| inner.bearer_auth(token))
    }

    /// Sets the body.
    pub fn body(self, body: impl Into<reqwest::Body>) -> Self {
        self.map(|inner| inner.body(body))
    }

    /// Sets the [total time-out](crate#time-outs) of each sending.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.map(|inner| inner.timeout(timeout))
    }

    /// Sets the HTTP version.
    pub fn version(self, version: Version) -> Self {
        self.map(|inner| inner.version(version))
    }

    /// Sets a `multipart/form-data` body.
    #[cfg(feature = "multipart")]
    #[cfg_attr(docsrs, doc(cfg(feature = "multipart")))]
    pub fn multipart(self, form: reqwest::multipart::Form) -> Self {
        self.map(|inner| inner.multipart(form))
    }

    /// Appends to the query of the URL.
    ///
    /// A value that can't be serialized is an error of [`send`](Self::send); likewise for `form` and `json`.
    pub fn query<T: Serialize + ?Sized>(self, query: &T) -> Self {
        self.map(|inner| inner.query(query))
    }

    /// Sets a URL-encoded body.
    pub fn form<T: Serialize + ?Sized>(self, form: &T) -> Self {
        self.map(|inner| inner.form(form))
    }

    /// Sets a JSON body.
    pub fn json<T: Serialize + ?Sized>(self, json: &T) -> Self {
        self.map(|inner| inner.json(json))
    }

    /// Builds the request, for [`ApiClient::execute`].
    pub fn build(self) -> reqwest::Result<reqwest::Request> {
        self.inner.build()
    }

    /// Clones the builder; `None` if the body is a stream.
    #[must_use]
    pub fn try_clone(&self) -> Option<Self> {
        Some(Self { api: self.api.clone(), inner: self.inner.try_clone()? })
    }

    /// Sends the request.
    ///
    /// # Errors
    ///
    /// Those of [`reqwest::RequestBuilder::send`].
    pub fn send(self) -> impl Future<Output = reqwest::Result<reqwest::Response>> + Send {
        self.api.send(self.inner.build())
    }
}

/// Sends requests of reqwest's own builder through an [`ApiClient`].
pub trait SendWith: sealed::Sealed {
    /// Sends the request through `api`, and not through the client that made the builder.
    ///
    /// That client's settings (default headers, cookies, time-outs) don't take part.
    ///
    /// # Errors
    ///
    /// Those of [`reqwest::RequestBuilder::send`].
    fn send_with(self, api: &ApiClient) -> impl Future<Output = reqwest::Result<reqwest::Response>> + Send + use<Self>;
}

impl SendWith for reqwest::RequestBuilder {
    fn send_with(self, api: &ApiClient) -> impl Future<Output = reqwest::Result<reqwest::Response>> + Send + use<> {
        RequestBuilder::new(api.clone(), self).send()
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for reqwest::RequestBuilder {}
}

impl fmt::Debug for RequestBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
