//! The daemons' spans on their way to an OpenTelemetry collector, by OTLP over gRPC; part of the program only with the feature `otel`.
//!
//! A bounded queue and a thread of the SDK: a collector that is slow or away costs spans, never the daemon's time. Spans of other crates
//! (the exporter's own HTTP among them) are left out.

#![forbid(unsafe_code)]

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

/// What a collector may take for one batch, and an exporter for its last one.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why nothing is exported.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// An endpoint of another form.
    #[error(
        "{0:?} is not of the form http://host:port; spans go to a collector on this host or a trusted network, without TLS"
    )]
    Endpoint(String),
    /// The exporter did not start.
    #[error("spans cannot be sent to {endpoint}: {cause}")]
    Exporter {
        /// Where to.
        endpoint: String,
        /// What the library says.
        cause: String,
    },
}

/// An exporter at work. Dropping it loses what is queued; [`Exporter::stop`] sends it.
#[derive(Debug)]
pub struct Exporter {
    provider: SdkTracerProvider,
}

impl Exporter {
    /// Sends spans to the collector at `endpoint` (`http://host:4317`) as those of `service`. To be called in a tokio runtime; connects when there is
    /// something to send.
    pub fn start(endpoint: &str, service: &'static str) -> Result<Self, TelemetryError> {
        let authority = endpoint.strip_prefix("http://").unwrap_or_default();
        if authority.trim_end_matches('/').is_empty() {
            return Err(TelemetryError::Endpoint(endpoint.into()));
        }
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(PATIENCE).build();
        let exporter = exporter
            .map_err(|error| TelemetryError::Exporter { endpoint: endpoint.into(), cause: error.to_string() })?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name(service).with_attribute(version).build();
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        Ok(Self { provider })
    }

    /// What brings our spans, and what is logged in them, to the exporter.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        tracing_opentelemetry::layer().with_tracer(self.provider.tracer("faasnet")).with_filter(filter_fn(is_ours))
    }

    /// Sends what is queued, for a few seconds at most. Blocks.
    pub fn stop(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(PATIENCE) {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("faasnet")
        && *metadata.level() <= if metadata.is_span() { Level::DEBUG } else { Level::INFO }
}
