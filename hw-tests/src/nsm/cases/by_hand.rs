//! A forwarder is called by hand, badly: each call is refused with its code, and leaves nothing.

use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use ferrule_nsm::identity::{Authority, Identity, SpiffeId, Svid};
use ferrule_nsm::path::Place;
use ferrule_nsm::proto::connection::{Connection, Mechanism, Path, PathSegment};
use ferrule_nsm::proto::networkservice::NetworkServiceRequest;
use ferrule_nsm::proto::networkservice::network_service_client::NetworkServiceClient;
use ferrule_nsm::service::{Call, Handler, INODE_URL, NextHop};
use ferrule_nsm::token::Token;
use ferrule_nsm::transport::DialOptions;
use tonic::{Code, Request, Status};

use super::{ENDPOINT_ADDRESS, ONE_FAMILY, few_lost, wait_until};
use crate::TIMEOUT;
use crate::nsm::caller::{Caller, Served, dial, file, kernel, mechanism, request};
use crate::nsm::mesh::{Mesh, SERVICE};
use crate::nsm::pod::MeshPod;

pub(super) fn refusals(mesh: &mut Mesh) -> Result<()> {
    let pair = mesh.connect(ONE_FAMILY, "ETHERNET")?;
    let pings = pair.client_pod.start_pings(ENDPOINT_ADDRESS);
    let bad = BadCaller::new(mesh)?;
    let interfaces_before = pair.endpoint_pod.interfaces();
    let (namespace, null) = (file(&bad.pod.netns().path())?, file("/dev/null".as_ref())?);
    let of_node = file(&mesh.near().place().netns().path())?;
    let wanted = kernel(&namespace, "bad")?;
    let inode = |url: &str| mechanism("KERNEL", &[(INODE_URL, url), ("name", "bad")]);
    let asking = |mechanism: Mechanism| request(NAME, "bad-0", SERVICE, mechanism);

    bad.is_refused("a mechanism that nobody has", asking(mechanism("SRV6", &[])), &[], Code::Unimplemented)?;
    bad.is_refused("a file that is not passed", asking(wanted.clone()), &[], Code::InvalidArgument)?;
    bad.is_refused("no file", asking(mechanism("KERNEL", &[])), &[], Code::InvalidArgument)?;
    let ours = inode("file:///proc/self/ns/net");
    bad.is_refused("a path of the forwarder", asking(ours), &[], Code::InvalidArgument)?;
    let no_namespace = kernel(&null, "bad")?;
    bad.is_refused("a file that is no namespace", asking(no_namespace), &[null], Code::InvalidArgument)?;
    let own = kernel(&of_node, "bad")?;
    bad.is_refused("the namespace of the node", asking(own), &[of_node], Code::PermissionDenied)?;
    let files = [Arc::clone(&namespace)];
    bad.is_refused("an unknown service", request(NAME, "bad-0", "nobody", wanted.clone()), &files, Code::NotFound)?;
    for (what, tokens) in [("a token that has run out", true), ("a token for somebody else", false)] {
        let mut message = asking(wanted.clone());
        message.connection = Some(bad.behind_another(tokens)?);
        bad.is_refused(what, message, &files, Code::PermissionDenied)?;
    }
    let mut beyond = asking(wanted.clone());
    if let Some(path) = beyond.connection.as_mut().and_then(|connection| connection.path.as_mut()) {
        path.index = 7;
    }
    bad.is_refused("an index beyond the path", beyond, &files, Code::InvalidArgument)?;
    bad.run_out(asking(wanted.clone()), &files)?;
    bad.strangers(asking(wanted.clone()), &files)?;
    bad.hangs(mesh, wanted.clone(), &files)?;

    // What is large, and not too large, is served.
    bad.large_headers(asking(wanted), &files)?;
    ensure!(bad.pod.interfaces().is_empty(), "a refused call has left {:?}", bad.pod.interfaces());
    let wires = mesh.near().wires()?;
    ensure!(wires.matches("\"mesh\"").count() == 1, "wires are left: {wires}");
    ensure!(
        pair.endpoint_pod.interfaces() == interfaces_before,
        "the endpoint has {:?}",
        pair.endpoint_pod.interfaces()
    );
    few_lost(pings.end()?)?;
    pair.close()
}

/// A caller that has an identity, and does wrong with it.
struct BadCaller {
    caller: Caller,
    forwarder: String,
    next: NextHop,
    pod: MeshPod,
}

impl BadCaller {
    fn new(mesh: &mut Mesh) -> Result<Self> {
        let caller = Caller::at(mesh.path("identity/stranger.sock"))?;
        let forwarder = mesh.near().forwarder_url();
        let next = caller.dial(&forwarder)?;
        Ok(Self { caller, forwarder, next, pod: MeshPod::new() })
    }

    fn ask(
        &self,
        next: &NextHop,
        message: NetworkServiceRequest,
        files: &[Arc<OwnedFd>],
        limit: Duration,
    ) -> Result<Connection, Status> {
        self.caller.runtime().block_on(next.request(message, files, limit)).map_err(Status::from)
    }

    fn is_refused(&self, what: &str, message: NetworkServiceRequest, files: &[Arc<OwnedFd>], code: Code) -> Result<()> {
        let began = Instant::now();
        let answer = self.ask(&self.next, message, files, LIMIT);
        Self::judge(what, answer, code)?;
        ensure!(began.elapsed() < LIMIT, "{what}: refused after {:?} only", began.elapsed());
        Ok(())
    }

    fn judge(what: &str, answer: Result<Connection, Status>, code: Code) -> Result<()> {
        match answer {
            Ok(connection) => bail!("{what}: {connection:?}"),
            Err(status) => ensure!(status.code() == code, "{what}: {status}"),
        }
        Ok(())
    }

    /// The connection of somebody whose token is not for us, or has run out.
    fn behind_another(&self, is_late: bool) -> Result<Connection> {
        let svid = self.caller.identity().current().svid;
        let audience: SpiffeId =
            if is_late { svid.certificate().id().clone() } else { "spiffe://ferrule.local/other".parse()? };
        let lifetime = if is_late { Duration::ZERO } else { LIFETIME };
        let token = Token::sign(&svid, &audience, lifetime, SystemTime::now());
        let segment = PathSegment {
            name: "somebody".to_owned(),
            id: "somebody-0".to_owned(),
            token: token.text,
            expires: Some(token.expires.into()),
            ..PathSegment::default()
        };
        let path = Path { index: 0, path_segments: vec![segment] };
        let (id, network_service) = ("somebody-0".to_owned(), SERVICE.to_owned());
        let mut connection = Connection { id, network_service, path: Some(path), ..Connection::default() };
        Place::enter(&mut connection, NAME)?;
        Ok(connection)
    }

    /// A token of our own that has run out already.
    fn run_out(&self, message: NetworkServiceRequest, files: &[Arc<OwnedFd>]) -> Result<()> {
        let options = DialOptions { token_lifetime: Duration::ZERO, ..DialOptions::default() };
        let identity = self.caller.identity().current();
        let next = self.caller.runtime().block_on(dial(&self.forwarder, &identity, &options))?;
        Self::judge("our own token, run out", self.ask(&next, message, files, LIMIT), Code::PermissionDenied)
    }

    /// A certificate of an authority that nobody trusts.
    fn strangers(&self, message: NetworkServiceRequest, files: &[Arc<OwnedFd>]) -> Result<()> {
        let authority = Authority::new("ferrule.local".parse()?)?;
        let issued = authority.issue(&"spiffe://ferrule.local/nsmgr-1".parse()?, LIFETIME)?;
        let svid = Arc::new(Svid::new(vec![issued.certificate], &issued.key)?);
        let identity = Identity { svid, bundles: self.caller.identity().current().bundles };
        let options = DialOptions::default();
        // TLS 1.3 says it when something is sent.
        let Ok(next) = self.caller.runtime().block_on(dial(&self.forwarder, &identity, &options)) else {
            return Ok(());
        };
        ensure!(self.ask(&next, message, files, LIMIT).is_err(), "a certificate of another authority was believed");
        Ok(())
    }

    /// An endpoint that never answers. The caller's own clock ends its call: what the forwarder does is seen by the next call for the same
    /// connection, which it serves when the first one has ended.
    fn hangs(&self, mesh: &mut Mesh, wanted: Mechanism, files: &[Arc<OwnedFd>]) -> Result<()> {
        let (socket, manager) = (mesh.path("hanging.sock"), mesh.near().manager_url());
        let (asked, is_asked) = mpsc::channel();
        let _serving = Served::start(&self.caller, ("hanging", "ETHERNET"), socket, &manager, Hanging(asked))?;
        let mut message = request(NAME, "bad-hanging", "hanging", wanted);
        let (name, id) = (mesh.near().forwarder_name(), HANGING_ID.to_owned());
        let path = message.connection.as_mut().and_then(|connection| connection.path.as_mut());
        path.context("a request without a path")?.path_segments.push(PathSegment {
            name,
            id,
            ..PathSegment::default()
        });
        let mut again = message.clone();
        SERVICE.clone_into(&mut again.connection.as_mut().context("a request without a connection")?.network_service);
        let began = Instant::now();
        let answer = self.ask(&self.next, message, files, HANGS);
        Self::judge("a next hop that hangs", answer, Code::DeadlineExceeded)?;
        ensure!(is_asked.try_recv().is_ok(), "the endpoint that hangs was not asked");
        let made = self.ask(&self.next, again, files, LIMIT);
        let made = made.context("the next call for the connection whose next hop has hung")?;
        let own = made.path.as_ref().and_then(|path| path.path_segments.get(1));
        ensure!(own.is_some_and(|own| own.id == HANGING_ID), "it was another connection: {made:?}");
        let took = began.elapsed().as_secs_f64();
        mesh.figure("after a call with 2 s whose next hop hangs, the next one is served after", took, "s");
        self.caller.runtime().block_on(self.next.close(made, files, LIMIT))?;
        self.pod.wait_interfaces(0, TIMEOUT)
    }

    /// Headers of 8 KiB, as programs in Go send them at their highest log level.
    fn large_headers(&self, message: NetworkServiceRequest, files: &[Arc<OwnedFd>]) -> Result<()> {
        let channel = self.next.connection();
        for file in files {
            channel.peer().files().context("a Unix socket passes files")?.send(Arc::clone(file))?;
        }
        let mut request = Request::new(message);
        for number in 0..64 {
            let name = format!("x-{number}").parse::<tonic::metadata::AsciiMetadataKey>()?;
            request.metadata_mut().insert(name, "y".repeat(120).parse()?);
        }
        let mut client = NetworkServiceClient::new(channel.calls());
        let answer = self.caller.runtime().block_on(client.request(request));
        let made = answer.context("a call with 8 KiB of headers")?.into_inner();
        wait_until("the interface is there", || Ok(self.pod.interfaces() == ["bad"]))?;
        // What is gone already must not keep it from being closed.
        self.pod.netns().ip("link del bad");
        self.caller.runtime().block_on(self.next.close(made, files, LIMIT))?;
        self.pod.wait_interfaces(0, TIMEOUT)
    }
}

/// Says that it was asked, and never answers.
struct Hanging(mpsc::Sender<()>);

#[tonic::async_trait]
impl Handler for Hanging {
    async fn request(&self, _: Call) -> Result<Connection, Status> {
        let _ = self.0.send(());
        std::future::pending().await
    }

    async fn close(&self, _: Call) -> Result<(), Status> {
        Ok(())
    }
}

const NAME: &str = "bad";
/// What a call may take.
const LIMIT: Duration = Duration::from_secs(15);
const HANGS: Duration = Duration::from_secs(2);
/// What the forwarder calls the connection.
const HANGING_ID: &str = "5e1b1f0e-8c1f-4f0c-9d3b-0a5f6a7c2b11";
const LIFETIME: Duration = Duration::from_mins(10);
