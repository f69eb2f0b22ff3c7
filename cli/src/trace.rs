//! `ferrule trace`: the frames of a wire or of a network function as they cross, as lines and as a file that Wireshark opens.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use dpdk_forwarder::config::ADMIN_DEFAULT;
use ferrule_daemon::grpc::{self, ConnectError};
use ferrule_trace::line::Line;
use ferrule_trace::pcapng::{WriteError, Writer};
use ferrule_trace::v1::trace_client::TraceClient;
use ferrule_trace::v1::{Filter, TraceRequest, TraceResponse, TracedFrame};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Streaming};

use crate::text;

/// Options of `ferrule trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The wire; of a network function in a mesh the id of the connection, unless there is one only
    #[arg(value_name = "WIRE", default_value = "")]
    target: String,
    /// The socket of the forwarder, or of a network function
    #[arg(long, env = "FERRULE_SOCKET", value_name = "PATH", default_value = ADMIN_DEFAULT)]
    socket: PathBuf,
    /// Write the frames to this file, which Wireshark opens; `-` for the standard output, and then no lines are shown
    #[arg(long, short, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Only frames of this address or prefix, at either end; of several, of one of them
    #[arg(long, value_name = "ADDRESS")]
    host: Vec<String>,
    /// Only frames of this port, at either end
    #[arg(long, value_name = "PORT")]
    port: Vec<u32>,
    /// Only frames of this protocol: tcp, udp, icmp, icmpv6, arp, ip, ipv6, or a number
    #[arg(long, value_name = "NAME")]
    protocol: Vec<String>,
    /// Only frames that this rule of a firewall has decided, itself or by a session
    #[arg(long, value_name = "NAME")]
    rule: Vec<String>,
    /// Only frames that a network function let go no further
    #[arg(long)]
    dropped: bool,
    /// Copy this much of each frame; 0: all of it
    #[arg(long, value_name = "BYTES", default_value_t = SNAP_DEFAULT)]
    snap: u32,
    /// End after so many frames
    #[arg(long, value_name = "COUNT")]
    frames: Option<u64>,
    /// End after so many bytes of frames
    #[arg(long, value_name = "COUNT")]
    bytes: Option<u64>,
    /// End after so long
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
}

/// Why frames cannot be shown.
#[derive(Debug, Error)]
pub enum TraceError {
    /// Nobody serves the socket.
    #[error("{}", .0.denied().unwrap_or_else(|| format!("nobody answers on {}; name the socket of a forwarder or of a network function with --socket", .0)))]
    Nobody(#[from] ConnectError),
    /// It was refused, or ended.
    #[error("{0}")]
    Refused(String),
    /// The file cannot be written.
    #[error("write {path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A frame cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Our own output went wrong.
    #[error("write the output: {0}")]
    Output(#[from] io::Error),
}

/// Shows frames until it is told to stop, or has shown as many as are wanted.
pub async fn run(args: &TraceArgs) -> Result<(), TraceError> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut client = TraceClient::new(grpc::connect(&args.socket).await?).max_decoding_message_size(MESSAGE_MAX);
    let filter = Filter {
        hosts: args.host.clone(),
        ports: args.port.clone(),
        protocols: args.protocol.clone(),
        rules: args.rule.clone(),
        dropped: args.dropped,
    };
    let request = TraceRequest { target: args.target.clone(), filter: Some(filter), snap_len: args.snap };
    let answer = client.trace(request).await.map_err(|status| refused(&status))?;
    let until = args.seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, SECONDS_MAX)));
    let mut shown = TraceView::new(args);
    let ended = tokio::select! {
        followed = shown.follow(answer.into_inner()) => followed,
        () = until_or_never(until) => Ok(()),
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    shown.finish()?;
    ended
}

async fn until_or_never(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn refused(status: &tonic::Status) -> TraceError {
    let message = match status.code() {
        Code::Unimplemented => "it serves no traces: it is older than this program, or something else".to_owned(),
        _ => status.message().to_owned(),
    };
    TraceError::Refused(text::foreign(&message).into_owned())
}

/// What is shown of the frames, and how far it has come.
struct TraceView<'a> {
    args: &'a TraceArgs,
    writer: Option<Writer<BufWriter<Box<dyn Write + Send>>>>,
    interfaces: Vec<String>,
    is_ip: bool,
    frames: u64,
    bytes: u64,
    missed: u64,
}

impl<'a> TraceView<'a> {
    fn new(args: &'a TraceArgs) -> Self {
        Self { args, writer: None, interfaces: Vec::new(), is_ip: false, frames: 0, bytes: 0, missed: 0 }
    }

    /// Shows what comes, until that is enough.
    async fn follow(&mut self, mut frames: Streaming<TraceResponse>) -> Result<(), TraceError> {
        loop {
            match frames.message().await {
                Ok(Some(more)) => {
                    if !self.show(&more)? {
                        return Ok(());
                    }
                }
                Ok(None) => return Ok(()),
                Err(status) => return Err(refused(&status)),
            }
        }
    }

    /// `false`: it is enough.
    fn show(&mut self, more: &TraceResponse) -> Result<bool, TraceError> {
        if !more.interfaces.is_empty() {
            self.begin(more)?;
        }
        self.missed = self.missed.max(more.missed);
        let mut out = io::stdout().lock();
        for frame in &more.frames {
            if self.is_enough() {
                break;
            }
            self.frames += 1;
            self.bytes += u64::from(frame.length);
            if let Some(writer) = &mut self.writer {
                writer.write(frame)?;
            }
            if !self.is_stdout_taken() {
                writeln!(out, "{}", self.line(frame))?;
            }
        }
        if let Some(writer) = &mut self.writer {
            // Whoever looks on sees them now.
            writer.get_mut().flush()?;
        }
        Ok(!self.is_enough())
    }

    /// What the frames are of.
    fn begin(&mut self, first: &TraceResponse) -> Result<(), TraceError> {
        (self.interfaces, self.is_ip) = (first.interfaces.clone(), first.is_ip);
        if let Some(path) = &self.args.write {
            let out: Box<dyn Write + Send> = if self.is_stdout_taken() {
                Box::new(io::stdout())
            } else {
                let file = File::create(path).map_err(|source| TraceError::File { path: path.clone(), source })?;
                Box::new(file)
            };
            self.writer = Some(Writer::new(BufWriter::new(out), &self.interfaces, self.is_ip)?);
        }
        let ends = text::foreign(&self.interfaces.join(" and ")).into_owned();
        eprintln!("tracing {ends}; Ctrl-C ends it");
        Ok(())
    }

    fn line(&self, frame: &TracedFrame) -> String {
        let interface = self.interfaces.get(frame.interface as usize).map_or("?", String::as_str);
        text::foreign(&Line { frame, interface, is_ip: self.is_ip }.to_string()).into_owned()
    }

    fn is_stdout_taken(&self) -> bool {
        self.args.write.as_ref().is_some_and(|path| path.as_os_str() == "-")
    }

    fn is_enough(&self) -> bool {
        self.args.frames.is_some_and(|max| self.frames >= max) || self.args.bytes.is_some_and(|max| self.bytes >= max)
    }

    fn finish(&mut self) -> Result<(), TraceError> {
        if let Some(writer) = &mut self.writer {
            writer.get_mut().flush()?;
        }
        eprintln!("{} frames, {} bytes; {} found no room and are missing", self.frames, self.bytes, self.missed);
        Ok(())
    }
}

/// More than all headers, and than most frames.
const SNAP_DEFAULT: u32 = 2048;
/// A message has some hundred KiB of frames, and one frame more.
const MESSAGE_MAX: usize = 16 << 20;
/// A year.
const SECONDS_MAX: f64 = 31e6;
