//! What manager and forwarder tell a collector of traces: a stand-in that keeps what it is sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use ferrule_ffi::netns::NetNs;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::cases::{NsmCase, wait_until};
use super::mesh::{Mesh, MeshOptions};
use super::programs::Cast;
use super::settings::TRACES_PORT;

/// All of them, with our own programs.
pub fn all() -> Vec<NsmCase> {
    let options = MeshOptions { traces: true, ..MeshOptions::default() };
    vec![NsmCase {
        name: "a_connection_is_traced_from_process_to_process",
        cast: Cast::default(),
        options,
        needs: &[],
        run: traced,
    }]
}

fn traced(mesh: &mut Mesh) -> Result<()> {
    let collector = Collector::start(mesh)?;
    let pair = mesh.connect("172.16.1.0/24", "ETHERNET")?;
    wait_until("the Request is a chain of spans", || Ok(collector.has_chain(REQUEST)))?;
    // The forwarder tells the manager that it is down.
    mesh.near().kill("endpoint")?;
    wait_until("what was told of the connection is in its trace", || {
        let spans = collector.spans();
        let events: Vec<_> = spans.iter().filter(|span| span.name == MONITOR && span.process == "nsmgr-1").collect();
        Ok(events.iter().any(|event| {
            let is_parent = |span: &&Collected| span.id == event.parent && span.trace == event.trace;
            spans.iter().find(is_parent).is_some_and(|parent| parent.name == REQUEST && parent.process == "nsmgr-1")
        }))
    })?;
    mesh.far().start_endpoint(&pair.endpoint_pod, "172.16.1.0/24", "ETHERNET")?;
    pair.client.wait_for_times("connected: ", 2);
    pair.close()?;
    wait_until("the Close is a chain of spans", || Ok(collector.has_chain(CLOSE)))
}

/// Keeps what it is sent.
struct Collector {
    spans: Arc<Mutex<Vec<Collected>>>,
    _runtime: Runtime,
}

/// A span.
#[derive(Clone, Debug)]
struct Collected {
    process: String,
    name: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    connection: String,
}

impl Collector {
    fn start(mesh: &mut Mesh) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().context("start a thread")?;
        let address = SocketAddr::new(mesh.near().address(), TRACES_PORT);
        let netns = NetNs::open(&mesh.near().place().netns().path())?;
        let listener = netns.run(|| std::net::TcpListener::bind(address))?.context("listen for traces")?;
        listener.set_nonblocking(true)?;
        let spans = Arc::<Mutex<Vec<Collected>>>::default();
        let service = TraceServiceServer::new(Keeping(Arc::clone(&spans)));
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener)?);
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await?;
            anyhow::Ok(())
        });
        Ok(Self { spans, _runtime: runtime })
    }

    fn spans(&self) -> MutexGuard<'_, Vec<Collected>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the manager was asked, asked the forwarder, which was asked and asked the endpoint: each in the span of the one before.
    fn has_chain(&self, name: &str) -> bool {
        let spans = self.spans();
        let after = |before: &Collected, process: &str| {
            let fits = |span: &&Collected| {
                span.parent == before.id && span.trace == before.trace && span.name == name && span.process == process
            };
            spans.iter().find(fits).cloned()
        };
        let is_first = |span: &&Collected| span.process == "nsmgr-1" && span.name == name && span.parent.is_empty();
        spans.iter().filter(is_first).any(|served| {
            let chain = || {
                let made = after(served, "nsmgr-1")?;
                let served = after(&made, "fwd-1")?;
                let made = after(&served, "fwd-1")?;
                (!served.connection.is_empty() && made.connection == served.connection).then_some(())
            };
            chain().is_some()
        })
    }
}

struct Keeping(Arc<Mutex<Vec<Collected>>>);

#[tonic::async_trait]
impl TraceService for Keeping {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_process in request.into_inner().resource_spans {
            let process = of_process.resource.map(|resource| text(&resource.attributes, "service.name"));
            for span in of_process.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let collected = Collected {
                    process: process.clone().unwrap_or_default(),
                    connection: text(&span.attributes, "nsm.connection"),
                    name: span.name,
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                };
                self.0.lock().unwrap_or_else(PoisonError::into_inner).push(collected);
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()) {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => text.clone(),
        _ => String::new(),
    }
}

const REQUEST: &str = "networkservice.NetworkService/Request";
const CLOSE: &str = "networkservice.NetworkService/Close";
const MONITOR: &str = "connection.MonitorConnection/MonitorConnections";
