//! The exporter against a collector of our own.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use faasnet_telemetry::{Exporter, TelemetryError};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tracing_subscriber::layer::SubscriberExt as _;

const DEADLINE: Duration = Duration::from_secs(20);

/// A collector that hands on what it is sent.
struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).unwrap();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Catches spans that do not arrive, or without their name, fields, parent and service; and those of other crates that do.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_our_spans_and_no_others() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut received) = mpsc::unbounded_channel();
    let server = Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let exporter = Exporter::start(&format!("http://{address}"), "faasnet-test").unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(exporter.layer()), || {
        let outer = tracing::debug_span!(target: "faasnet_controller", "provision", function = "resize").entered();
        tracing::info!(target: "faasnet_controller", "half of it is there");
        tracing::info_span!(target: "h2", "somebody else's").in_scope(|| ());
        tracing::debug_span!(target: "faasnet_agent", "inner").in_scope(|| ());
        drop(outer);
    });
    tokio::task::spawn_blocking(|| exporter.stop()).await.unwrap();
    let request = tokio::time::timeout(DEADLINE, received.recv()).await.unwrap().unwrap();
    let of_service = &request.resource_spans[0];
    let service = &of_service.resource.as_ref().unwrap().attributes;
    assert!(format!("{service:?}").contains("faasnet-test"), "{service:?}");
    let mut spans: Vec<_> = of_service.scope_spans.iter().flat_map(|scope| &scope.spans).collect();
    spans.sort_by_key(|span| &span.name);
    assert_eq!(spans.iter().map(|span| &*span.name).collect::<Vec<_>>(), ["inner", "provision"]);
    assert_eq!(spans[0].parent_span_id, spans[1].span_id);
    let told = format!("{:?}", (&spans[1].attributes, &spans[1].events));
    assert!(told.contains("resize") && told.contains("half of it is there"), "{told}");
}

/// Catches a daemon that starts without its collector though one was named, or waits for ever for one that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_endpoint_is_told_and_a_dead_one_costs_nothing() {
    for wrong in ["", "http://", "https://collector:4317", "collector:4317"] {
        assert!(matches!(Exporter::start(wrong, "faasnet-test"), Err(TelemetryError::Endpoint(_))), "{wrong:?}");
    }
    let exporter = Exporter::start("http://127.0.0.1:1", "faasnet-test").unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(exporter.layer()), || {
        tracing::debug_span!(target: "faasnet_agent", "lost").in_scope(|| ());
    });
    let stopped = tokio::task::spawn_blocking(|| exporter.stop());
    tokio::time::timeout(DEADLINE, stopped).await.expect("it waits for a collector that is not there").unwrap();
}
