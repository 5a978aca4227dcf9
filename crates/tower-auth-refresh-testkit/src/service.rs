//! The `tower` service: a request's way from its arrival to its response.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf;
use http::{Request, Response, StatusCode};
use http_body::Body;
use tower_service::Service;

use crate::TestKit;
use crate::answer::Answer;
use crate::body::{BoxError, ResponseBody};
use crate::error::ConnectionDropped;
use crate::exchange::Exchange;
use crate::faults::{Act, Fault, Pace, Phase, Route};
use crate::gate::Bar;
use crate::kit::HeldResponses;
use crate::routes::Call;

/// The future of a call to a [`TestKit`].
pub type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, ConnectionDropped>> + Send>>;

impl<B> Service<Request<B>> for TestKit
where
    B: Body<Data: Buf + Send, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = ConnectionDropped;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Box::pin(respond(Exchange::begin(self, &request), request))
    }
}

/// Reads a request, processes it, waits at the gates, and applies the fault that matches.
async fn respond<B>(mut exchange: Exchange, request: Request<B>) -> Result<Response<ResponseBody>, ConnectionDropped>
where
    B: Body<Data: Buf, Error: Into<BoxError>> + Send + 'static,
{
    let call = Call::read(&mut exchange, request).await;
    let fault = next_fault(&mut exchange);
    let fault = fault.as_ref();

    let mut answer = match apply_fault(fault, Phase::BeforeProcessing).await? {
        Some(substitute) => {
            call.discard(&exchange.kit);
            substitute
        }
        None => call.process(&mut exchange, fault.map(Fault::grant).unwrap_or_default()).await,
    };

    let mut successor = answer.successor.take();
    let bars = bars(&exchange, &answer);
    if let Some(successor) = &mut successor {
        successor.set_at_risk(fault.is_some() || !bars.is_empty());
    }
    for bar in bars {
        bar.pass().await;
    }

    let mut is_spoilt = false;
    if let Some(substitute) = apply_fault(fault, Phase::AfterProcessing).await? {
        answer = substitute;
        is_spoilt = true;
    }
    if let Some(change) = fault.and_then(Fault::alteration) {
        answer.alter(change);
        is_spoilt = true;
    }
    exchange.set_status(answer.status);
    let pace = fault.map(Fault::pace).unwrap_or_default();
    if let (Some(successor), false, Pace::Whole) = (successor, is_spoilt, pace) {
        successor.delivered();
    }
    Ok(answer.into_response(pace))
}

fn next_fault(exchange: &mut Exchange) -> Option<Fault> {
    let fault = exchange.kit.state().next_fault(exchange.route, exchange.user());
    if fault.is_some() {
        exchange.note("fault");
    }
    fault
}

/// Applies the fault's part in this phase. Returns the answer that replaces the ordinary one, if there is one.
async fn apply_fault(fault: Option<&Fault>, phase: Phase) -> Result<Option<Answer>, ConnectionDropped> {
    let Some(fault) = fault else { return Ok(None) };
    let (delay, act) = fault.at(phase);
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    match act {
        Some(Act::Hang) => std::future::pending().await,
        Some(Act::Drop) => Err(ConnectionDropped(())),
        Some(act) => Ok(Answer::of_fault(act)),
        None => Ok(None),
    }
}

fn bars(exchange: &Exchange, answer: &Answer) -> Vec<Bar> {
    let responses = match exchange.route {
        Route::Refresh => HeldResponses::Refreshes,
        Route::Api if answer.status == StatusCode::UNAUTHORIZED => HeldResponses::Unauthorized,
        _ => return Vec::new(),
    };
    exchange.kit.state().bars(responses, exchange.user())
}
