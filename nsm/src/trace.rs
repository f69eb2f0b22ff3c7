//! Traces for a collector of OpenTelemetry (OTLP over gRPC): a span for each Request and Close that is served or made, and for each event of a
//! monitor, each in the trace of whoever asked (W3C Trace Context).
//!
//! Off unless [`start`] was called: then a call costs one look whether it was.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanKind, Status as SpanStatus, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tonic::Status;
use tonic::metadata::{AsciiMetadataKey, KeyRef, MetadataMap};

use crate::proto::connection::Connection;

/// What is traced goes to a collector as long as this lives. Its end waits a moment for what was not sent yet.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

/// Why nothing is traced.
#[derive(Debug, thiserror::Error)]
#[error(
    "send traces to {endpoint}: {problem}; a collector of OpenTelemetry is wanted that takes OTLP over gRPC, as in `http://collector:4317`"
)]
pub struct TraceError {
    endpoint: String,
    problem: String,
}

/// Traces this process, whose name is that of its spans' service. Must be called inside a runtime of several threads.
///
/// # Errors
/// The address is none, or it was called before.
pub fn start(endpoint: &str, process: &str) -> Result<Traces, TraceError> {
    let failed = |problem: String| TraceError { endpoint: endpoint.to_owned(), problem };
    // As the programs in Go write it.
    let url = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(url).with_timeout(EXPORT_MAX).build();
    let exporter = exporter.map_err(|error| failed(error.to_string()))?;
    let resource = Resource::builder_empty().with_service_name(process.to_owned()).build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let tracer = provider.tracer("ferrule-nsm");
    TRACER.set(tracer).map_err(|_| failed("this process is traced already".to_owned()))?;
    Ok(Traces(provider))
}

/// Where traces go by the environment of the programs in Go: with `TELEMETRY=true` to `NSM_OPEN_TELEMETRY_ENDPOINT`, or to where their
/// manifests have the collector. None: nowhere.
pub fn endpoint_of_environment(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let is_on = variable("TELEMETRY").is_some_and(|value| value == "true");
    let named = || variable("NSM_OPEN_TELEMETRY_ENDPOINT").filter(|endpoint| !endpoint.is_empty());
    is_on.then(|| named().unwrap_or_else(|| ENDPOINT_DEFAULT.to_owned()))
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(EXPORT_MAX) {
            tracing::debug!(%error, "some of the last traces were not sent");
        }
    }
}

/// A call, from its begin to its end.
#[derive(Clone, Debug)]
pub(crate) struct CallSpan(Context);

impl CallSpan {
    /// A call of somebody else that is served.
    pub(crate) fn served(name: &'static str, metadata: &MetadataMap) -> Option<Self> {
        let tracer = TRACER.get()?;
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(metadata));
        Some(Self::begin(tracer, name, SpanKind::Server, &parent))
    }

    /// A call that is made for what is served now.
    pub(crate) fn made(name: &'static str) -> Option<Self> {
        let tracer = TRACER.get()?;
        Some(Self::begin(tracer, name, SpanKind::Client, &Self::current().map_or_else(Context::new, |span| span.0)))
    }

    /// Something that was told of a connection, which was made in this span.
    pub(crate) fn told(name: &'static str, of: Option<&Self>) -> Option<Self> {
        let tracer = TRACER.get()?;
        Some(Self::begin(tracer, name, SpanKind::Consumer, &of.map_or_else(Context::new, |span| span.0.clone())))
    }

    fn begin(tracer: &SdkTracer, name: &'static str, kind: SpanKind, parent: &Context) -> Self {
        let span = tracer.build_with_context(tracer.span_builder(name).with_kind(kind), parent);
        Self(parent.with_span(span))
    }

    /// What is served by this task now.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Which connection it is about.
    pub(crate) fn note(&self, connection: &Connection) {
        self.0.span().set_attributes([
            KeyValue::new("nsm.connection", connection.id.clone()),
            KeyValue::new("nsm.service", connection.network_service.clone()),
            KeyValue::new("nsm.state", connection.state().as_str_name()),
        ]);
    }

    /// Tells whoever is called in whose trace it is.
    pub(crate) fn inject(&self, metadata: &mut MetadataMap) {
        TraceContextPropagator::new().inject_context(&self.0, &mut HeadersMut(metadata));
    }

    /// How it has ended.
    pub(crate) fn end<T>(self, outcome: &Result<T, Status>) {
        let span = self.0.span();
        if let Err(status) = outcome {
            span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(status.code() as i32)));
            span.set_status(SpanStatus::error(status.message().to_owned()));
        }
        span.end();
    }
}

/// Does work for a call: what that calls is told so.
pub(crate) async fn inside<F: Future>(span: Option<CallSpan>, work: F) -> F::Output {
    match span {
        Some(span) => CURRENT.scope(span, work).await,
        None => work.await,
    }
}

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

tokio::task_local! {
    static CURRENT: CallSpan;
}

struct Headers<'a>(&'a MetadataMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        let name = |key| if let KeyRef::Ascii(key) = key { Some(key.as_str()) } else { None };
        self.0.keys().filter_map(name).collect()
    }
}

struct HeadersMut<'a>(&'a mut MetadataMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (AsciiMetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

/// Names of calls, as gRPC has them.
pub(crate) const REQUEST: &str = "networkservice.NetworkService/Request";
pub(crate) const CLOSE: &str = "networkservice.NetworkService/Close";
pub(crate) const MONITOR: &str = "connection.MonitorConnection/MonitorConnections";
/// Where the manifests of the mesh have their collector.
const ENDPOINT_DEFAULT: &str = "otel-collector.observability.svc.cluster.local:4317";
const EXPORT_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_traced_unless_it_was_asked_for() {
        let metadata = MetadataMap::new();
        assert!(CallSpan::served(REQUEST, &metadata).is_none() && CallSpan::made(CLOSE).is_none());
        let of = |pairs: &[(&str, &str)]| {
            endpoint_of_environment(|name| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(of(&[("NSM_OPEN_TELEMETRY_ENDPOINT", "here:4317")]), None);
        assert_eq!(of(&[("TELEMETRY", "false")]), None);
        assert_eq!(of(&[("TELEMETRY", "true")]).as_deref(), Some(ENDPOINT_DEFAULT));
        let named = of(&[("TELEMETRY", "true"), ("NSM_OPEN_TELEMETRY_ENDPOINT", "here:4317")]);
        assert_eq!(named.as_deref(), Some("here:4317"));
    }
}
