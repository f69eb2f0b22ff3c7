//! The page for Prometheus and for probes: `/metrics`, `/healthz`, and of a daemon that knows more than its phase `/livez` and `/readyz`.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_core::future::BoxFuture;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::Phase;
use crate::metrics::CONTENT_TYPE;
use connection::BoundedListener;

mod connection;

/// Where scrapes come in.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens there.
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let failed = |source| ListenError { address, source };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address })
    }

    /// Where that is: with port 0 in the settings, the port that was given.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The address of a page, as a flag gives it; the error says what is wanted.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address and a port are wanted, as in `127.0.0.1:9090`".to_owned())
}

/// The page cannot listen at its address.
#[derive(Debug, Error)]
#[error("listen on {address} for metrics: {source}; choose another address with `--metrics`")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// Makes the text of a scrape; it may wait.
pub type Render = Arc<dyn Fn() -> Result<String, fmt::Error> + Send + Sync>;

/// Says what is wrong, if something is; it does not wait.
pub type Probe = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the kubelet asks of a pod.
#[derive(Clone)]
pub struct Probes {
    /// Wrong: only a new process helps.
    pub live: Probe,
    /// Wrong: it does not do its work now.
    pub ready: Probe,
}

impl Default for Probes {
    /// Whoever answers lives, and is ready while its phase says so.
    fn default() -> Self {
        Self { live: Arc::new(|| Ok(())), ready: Arc::new(|| Ok(())) }
    }
}

/// Serves the page until the daemon has stopped.
pub fn serve(
    listener: Listener,
    render: Render,
    probes: Probes,
    phase: watch::Receiver<Phase>,
) -> BoxFuture<'static, io::Result<()>> {
    // Compiled here, and not again in each program that waits for it.
    Box::pin(serve_here(listener, render, probes, phase))
}

async fn serve_here(
    listener: Listener,
    render: Render,
    probes: Probes,
    phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let mut stopped = phase.clone();
    let page = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(Page { render, probes, phase });
    axum::serve(BoundedListener::new(listener.socket), page)
        .with_graceful_shutdown(async move {
            // An error means that the spine is gone, which is a stop as well.
            let _ = stopped.wait_for(|phase| *phase == Phase::Stopped).await;
        })
        .await
}

#[derive(Clone)]
struct Page {
    render: Render,
    probes: Probes,
    phase: watch::Receiver<Phase>,
}

async fn metrics(State(page): State<Page>) -> Response {
    match spawn_blocking(move || (page.render)()).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be read\n").into_response(),
    }
}

async fn livez(State(page): State<Page>) -> Response {
    answer((page.probes.live)(), "live\n")
}

async fn readyz(State(page): State<Page>) -> Response {
    match *page.phase.borrow() {
        Phase::Serving => answer((page.probes.ready)(), "ready\n"),
        Phase::Starting => answer(Err("it is starting".to_owned()), ""),
        Phase::Draining | Phase::Stopped => answer(Err("it is stopping".to_owned()), ""),
    }
}

fn answer(probed: Result<(), String>, good: &'static str) -> Response {
    match probed {
        Ok(()) => (StatusCode::OK, good).into_response(),
        Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")).into_response(),
    }
}

async fn healthz(State(page): State<Page>) -> Response {
    let (code, text) = match *page.phase.borrow() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Serving => (StatusCode::OK, "serving\n"),
        Phase::Draining | Phase::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    };
    (code, text).into_response()
}
