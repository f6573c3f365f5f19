//! Where the daemons' spans go: to an OpenTelemetry collector, in a program with the feature `otel` that was told of one. Else nowhere.

use anyhow::Result;
use tracing_subscriber::{Layer, Registry};

use crate::cli::Command;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Spans {
    #[cfg(feature = "otel")]
    exporter: Option<faasnet_telemetry::Exporter>,
}

#[cfg(feature = "otel")]
impl Spans {
    /// Starts what `command` asks for. To be called in the runtime.
    pub(crate) fn of(command: &Command) -> Result<Self> {
        let (endpoint, service) = match command {
            Command::Controller(args) => (&args.common.otlp_endpoint, "faasnet-controller"),
            Command::Agent(args) => (&args.common.otlp_endpoint, "faasnet-agent"),
            _ => return Ok(Self { exporter: None }),
        };
        // A variable that is set to nothing is not set.
        let endpoint = endpoint.as_deref().filter(|endpoint| !endpoint.trim().is_empty());
        let exporter = endpoint.map(|endpoint| faasnet_telemetry::Exporter::start(endpoint, service));
        Ok(Self { exporter: exporter.transpose()? })
    }

    /// What brings spans there.
    pub(crate) fn layer(&self) -> Option<Box<dyn Layer<Registry> + Send + Sync>> {
        self.exporter.as_ref().map(|exporter| exporter.layer().boxed())
    }

    /// Sends what is left.
    pub(crate) fn stop(self) {
        if let Some(exporter) = self.exporter {
            exporter.stop();
        }
    }
}

#[cfg(not(feature = "otel"))]
impl Spans {
    #[expect(clippy::unnecessary_wraps, reason = "the same as with the feature")]
    pub(crate) fn of(_: &Command) -> Result<Self> {
        Ok(Self {})
    }

    pub(crate) fn layer(&self) -> Option<Box<dyn Layer<Registry> + Send + Sync>> {
        None
    }

    pub(crate) fn stop(self) {}
}
