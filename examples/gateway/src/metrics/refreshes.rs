//! [`RefreshWatch`]: counts refreshes from the documented spans of `tower-auth-refresh`.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use tower_auth_refresh::NotRefreshed;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::Metrics;

/// A `tracing` layer that counts every refresh in the process.
#[derive(Debug)]
pub struct RefreshWatch {
    metrics: Arc<Metrics>,
}

/// The data of a running refresh, kept in the extensions of its span.
struct Refresh {
    started: Instant,
    outcome: String,
    waiters: u64,
}

impl RefreshWatch {
    /// Creates the layer, with a filter of its own: it counts refreshes whatever the filter of the log.
    pub fn layer<S>(metrics: &Arc<Metrics>) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let refreshes = filter_fn(is_refresh).and(LevelFilter::INFO);
        Self { metrics: Arc::clone(metrics) }.with_filter(refreshes)
    }
}

fn is_refresh(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == "tower_auth_refresh" && metadata.name() == "refresh"
}

impl<S> Layer<S> for RefreshWatch
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Refresh { started: Instant::now(), outcome: String::new(), waiters: 0 });
            self.metrics.refresh_started();
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(refresh) = span.extensions_mut().get_mut::<Refresh>()
        {
            values.record(refresh);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        if let Some(span) = context.span(&id)
            && let Some(refresh) = span.extensions_mut().remove::<Refresh>()
        {
            let seconds = refresh.started.elapsed().as_secs_f64();
            self.metrics.refresh_ended(&refresh.outcome, refresh.waiters, seconds);
        }
    }
}

impl Visit for Refresh {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "outcome" {
            value.clone_into(&mut self.outcome);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "waiters" {
            self.waiters = value;
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// Returns the name of a reason in the spans' `outcome` field.
pub(super) fn name(reason: &NotRefreshed) -> &'static str {
    match reason {
        NotRefreshed::Failed(_) => "refresh_failed",
        NotRefreshed::CoolingDown(_) => "cooling_down",
        NotRefreshed::Ended(_) => "session_ended",
        NotRefreshed::SignedOut => "signed_out",
        NotRefreshed::SessionChanged => "session_changed",
        NotRefreshed::NoRefreshToken => "no_refresh_token",
        NotRefreshed::SameToken => "same_token",
        NotRefreshed::RequestRefused => "request_refused",
        _ => "looping",
    }
}
