//! [`Answer`]: a route's answer, which a fault may change before it becomes a response.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use crate::body::{self, ResponseBody};
use crate::faults::{Act, Pace};
use crate::successor::Successor;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// The delivery of the refresh token in the answer, if that token supersedes another.
    pub(crate) successor: Option<Successor>,
    headers: HeaderMap,
    content: Content,
}

enum Content {
    Json(Value),
    Bytes(Bytes),
    Stream(ResponseBody),
}

impl Answer {
    pub(crate) fn json(status: StatusCode, value: impl Serialize) -> Self {
        let value = serde_json::to_value(value).expect("the answer is serializable");
        Self::new(status, Content::Json(value)).header(CONTENT_TYPE, JSON)
    }

    pub(crate) fn error(status: StatusCode, code: &str) -> Self {
        Self::json(status, json!({ "error": code }))
    }

    pub(crate) fn empty(status: StatusCode) -> Self {
        Self::new(status, Content::Bytes(Bytes::new()))
    }

    pub(crate) fn stream(body: ResponseBody) -> Self {
        Self::new(StatusCode::OK, Content::Stream(body))
    }

    /// A 401. Its challenge has no error code if the request carried no token (RFC 6750 §3.1).
    pub(crate) fn unauthorized(has_token: bool) -> Self {
        let (code, challenge) = if has_token {
            ("invalid_token", HeaderValue::from_static(r#"Bearer error="invalid_token""#))
        } else {
            ("no_token", HeaderValue::from_static("Bearer"))
        };
        Self::error(StatusCode::UNAUTHORIZED, code).header(WWW_AUTHENTICATE, challenge)
    }

    /// Returns the answer that a fault gives instead of the ordinary one.
    pub(crate) fn of_fault(act: &Act) -> Option<Self> {
        match act {
            Act::Status(status, headers, content) => {
                let mut answer = Self::new(*status, Content::Bytes(content.clone()));
                answer.headers.clone_from(headers);
                Some(answer)
            }
            Act::Malformed => {
                let broken = Bytes::from_static(br#"{"access_token":"at_1","refr"#);
                Some(Self::new(StatusCode::OK, Content::Bytes(broken)).header(CONTENT_TYPE, JSON))
            }
            Act::Huge(length) => Some(Self::stream(body::huge(*length)).header(CONTENT_TYPE, JSON)),
            Act::Answer | Act::Hang | Act::Drop | Act::Alter(_) | Act::Grant(_) => None,
        }
    }

    fn new(status: StatusCode, content: Content) -> Self {
        Self { status, successor: None, headers: HeaderMap::new(), content }
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub(crate) fn with_successor(mut self, successor: Successor) -> Self {
        self.successor = Some(successor);
        self
    }

    pub(crate) fn alter(&mut self, change: &(dyn Fn(&mut Value) + Send + Sync)) {
        if let Content::Json(value) = &mut self.content {
            change(value);
        }
    }

    pub(crate) fn into_response(self, pace: Pace) -> Response<ResponseBody> {
        let whole = match self.content {
            Content::Json(value) => body::full(value.to_string().into()),
            Content::Bytes(bytes) => body::full(bytes),
            Content::Stream(stream) => stream,
        };
        let mut response = Response::new(match pace {
            Pace::Whole => whole,
            Pace::Drip(every) => body::dripping(whole, every),
            Pace::Stall => body::stalling(whole),
        });
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}
