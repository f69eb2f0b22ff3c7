//! Ends of each kind at either side, by a client and an endpoint of our own: frames are compared where they arrive.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferrule_bench::traffic::{Addresses, Pattern, Sink};
use ferrule_dataplane::port::{BURST, FRAME_MAX, Frame, Put, Source, Target};
use ferrule_dataplane::spec::{MacAddress, MemifSpec, Mode, NetNs, Role, SocketAddress};
use ferrule_endpoints::Responder;
use ferrule_endpoints::end::{End, EndSpec};
use ferrule_endpoints::vhost_user::FrontendSpec;
use ferrule_nsm::files::Inode;
use ferrule_nsm::proto::connection::{Connection, Mechanism};
use ferrule_nsm::proto::networkservice::NetworkServiceRequest;
use ferrule_nsm::service::{Call, Handler, INODE_URL, NextHop};
use ferrule_nsm::transport::Peer;
use tonic::Status;

use super::wait_until;
use crate::TIMEOUT;
use crate::frames::Server;
use crate::nsm::caller::{Caller, Served, file, mechanism, request};
use crate::nsm::mesh::Mesh;
use crate::nsm::pod::MeshPod;

/// All kinds at the client's side beside all at the endpoint's.
pub(super) fn all_pairs(mesh: &mut Mesh) -> Result<()> {
    pairs_of(mesh, Mode::Ethernet, &[Kind::Kernel, Kind::Memif, Kind::VhostUser])
}

/// The same with payload IP, for those that have it.
pub(super) fn all_pairs_of_packets(mesh: &mut Mesh) -> Result<()> {
    pairs_of(mesh, Mode::Ip, &[Kind::Kernel, Kind::Memif])
}

fn pairs_of(mesh: &mut Mesh, mode: Mode, kinds: &[Kind]) -> Result<()> {
    let client = Caller::at(mesh.path("identity/stranger.sock"))?;
    let serving = Caller::at(mesh.path("identity/nse.sock"))?;
    let next = client.dial(&mesh.near().manager_url())?;
    let payload = if mode == Mode::Ip { "IP" } else { "ETHERNET" };
    for endpoint_kind in kinds {
        let far = Side::new(*endpoint_kind, mode)?;
        let handler = OwnEndpoint { mechanism: far.mechanism(true)?, file: Arc::clone(&far.file) };
        let (name, manager) = (format!("ends-{endpoint_kind:?}"), mesh.far().manager_url());
        let socket = mesh.path(&format!("{name}.sock"));
        let _served = Served::start(&serving, (&name, payload), socket, &manager, handler)?;
        for client_kind in kinds {
            let near = Side::new(*client_kind, mode)?;
            let pair = format!("{client_kind:?} beside {endpoint_kind:?}");
            one_pair(mesh, (&client, &next), &name, &near, &far).with_context(|| pair.clone())?;
        }
    }
    Ok(())
}

/// One connection, from the request to its close.
fn one_pair(
    mesh: &mut Mesh,
    (client, next): (&Caller, &NextHop),
    service: &str,
    near: &Side,
    far: &Side,
) -> Result<()> {
    let files = [Arc::clone(&near.file)];
    let id = format!("{service}-{:?}", near.kind);
    let ask = |message| client.runtime().block_on(next.request(message, &files, TIMEOUT)).map_err(Status::from);
    let made = ask(request("client", &id, service, near.mechanism(false)?))?;
    let refresh = || -> Result<()> {
        let again = NetworkServiceRequest {
            connection: Some(made.clone()),
            mechanism_preferences: vec![near.mechanism(false)?],
        };
        let again = ask(again)?;
        ensure!(
            again.mechanism == made.mechanism && again.context == made.context,
            "a refresh has changed {made:?} to {again:?}"
        );
        Ok(())
    };
    let carried = carry(near, far, &made, refresh);
    client.runtime().block_on(next.close(made.clone(), &files, TIMEOUT))?;
    carried?;
    near.pod.wait_interfaces(0, TIMEOUT)?;
    far.pod.wait_interfaces(0, TIMEOUT)?;
    let left: Vec<_> = fs::read_dir(near.directory.path())?.collect();
    ensure!(left.is_empty(), "{left:?} is left in the client's directory");
    wait_until("no wire is left", || Ok(!mesh.near().has_wire()? && !mesh.far().has_wire()?))
}

/// Sends frames both ways, or pings where the kernel has an end: before a refresh, and after it.
fn carry(near: &Side, far: &Side, made: &Connection, refresh: impl FnOnce() -> Result<()>) -> Result<()> {
    let chosen = made.mechanism.as_ref().context("no mechanism is answered")?;
    let (near_end, far_end) = (near.end(chosen)?, far.end(&far.mechanism(true)?)?);
    match (near_end, far_end) {
        (Some(near_end), Some(far_end)) => {
            let opening = thread::spawn(move || open(&near_end));
            let far_end = &mut open(&far_end)?;
            let near_end = &mut opening.join().map_err(|_| anyhow::anyhow!("opening the client's end panicked"))??;
            let longest = frame_max(made)?;
            exchange(near_end, far_end, near.mode, longest)?;
            refresh()?;
            exchange(near_end, far_end, near.mode, longest)
        }
        (near_end, far_end) => {
            let (pod, to) = if near_end.is_some() { (&far.pod, NEAR_ADDRESS) } else { (&near.pod, FAR_ADDRESS) };
            let end = near_end.or(far_end).map(|end| open(&end)).transpose()?;
            let _responder = end.map(|end| responder(end, near.mode));
            pod.netns().ping_all(to, PINGS, PING_SIZE);
            refresh()?;
            pod.netns().ping_all(to, PINGS, PING_SIZE);
            Ok(())
        }
    }
}

/// What a client or an endpoint has.
struct Side {
    kind: Kind,
    mode: Mode,
    pod: MeshPod,
    directory: tempfile::TempDir,
    /// What it passes: its namespace, or its directory.
    file: Arc<OwnedFd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kernel,
    Memif,
    VhostUser,
}

impl Side {
    fn new(kind: Kind, mode: Mode) -> Result<Self> {
        let (pod, directory) = (MeshPod::new(), tempfile::tempdir().context("make a directory")?);
        // A socket is made only where others than root may write.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).context("open a directory to all")?;
        let passed = if kind == Kind::VhostUser { directory.path().to_owned() } else { pod.netns().path() };
        Ok(Self { kind, mode, file: file(&passed)?, pod, directory })
    }

    /// What it says of its end: as an endpoint it names the socket, as a client it is told of it.
    fn mechanism(&self, is_endpoint: bool) -> Result<Mechanism> {
        let inode = Inode::of(&self.file)?.to_string();
        let named = |kind, key, value| {
            let mut all = vec![(INODE_URL, inode.as_str())];
            all.extend((is_endpoint || key == "name").then_some((key, value)));
            mechanism(kind, &all)
        };
        Ok(match self.kind {
            Kind::Kernel => named("KERNEL", "name", "end"),
            Kind::Memif => named("MEMIF", SOCKET_FILE, "@end"),
            Kind::VhostUser => named("VHOST_USER", SOCKET_FILE, "end.sock"),
        })
    }

    /// How its end is opened, if that is not the kernel's.
    fn end(&self, chosen: &Mechanism) -> Result<Option<EndSpec>> {
        let socket = || chosen.parameters.get(SOCKET_FILE).context("the answer names no socket");
        let listens = |name: &str| name == "@end" || name == "end.sock";
        Ok(match self.kind {
            Kind::Kernel => None,
            Kind::Memif => {
                let name = socket()?;
                let role = if listens(name) { Role::Server } else { Role::Client };
                let netns = Some(NetNs::Path(self.pod.netns().path()));
                Some(EndSpec::Memif(MemifSpec { netns, mode: self.mode, ..MemifSpec::new(name.parse()?, role) }))
            }
            Kind::VhostUser => {
                let name = socket()?;
                let socket = SocketAddress::Path(self.path(name));
                Some(EndSpec::Vhost(FrontendSpec { listens: listens(name), ..FrontendSpec::new(socket) }))
            }
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Has one mechanism, and says always the same of it.
struct OwnEndpoint {
    mechanism: Mechanism,
    file: Arc<OwnedFd>,
}

#[tonic::async_trait]
impl Handler for OwnEndpoint {
    async fn request(&self, call: Call) -> Result<Connection, Status> {
        let mut connection = call.connection;
        if !call.preferences.iter().any(|wanted| wanted.r#type == self.mechanism.r#type) {
            return Err(Status::unimplemented("another mechanism is wanted"));
        }
        let context = connection.context.get_or_insert_default().ip_context.get_or_insert_default();
        context.src_ip_addrs = vec![format!("{NEAR_ADDRESS}/24")];
        context.dst_ip_addrs = vec![format!("{FAR_ADDRESS}/24")];
        connection.mechanism = Some(self.mechanism.clone());
        if let Some(path) = &mut connection.path {
            call.place.trim(path);
        }
        let files = call.peer.as_ref().and_then(Peer::files);
        let files = files.ok_or_else(|| Status::failed_precondition("a Unix socket is wanted"))?;
        files.send(Arc::clone(&self.file)).map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(connection)
    }

    async fn close(&self, _: Call) -> Result<(), Status> {
        Ok(())
    }
}

pub(super) fn open(spec: &EndSpec) -> Result<End> {
    Ok(End::open(spec, TIMEOUT)?)
}

/// The first queue, to send on and to receive from.
fn queue(end: &mut End) -> (&mut dyn Target, &mut dyn Source) {
    match end {
        End::Memif(end) => (&mut end.queues.senders[0], &mut end.queues.receivers[0]),
        End::Vhost(end) => (&mut end.queues.senders[0], &mut end.queues.receivers[0]),
    }
}

pub(super) fn send(end: &mut End, bytes: &[u8]) -> Result<bool> {
    let (sender, _) = queue(end);
    let broken = |fault| anyhow::anyhow!("the peer broke the protocol: {fault:?}");
    sender.refresh().map_err(broken)?;
    let frame = Frame { bytes: bytes.into(), offload: None, slots: 0 };
    let stored = match sender.put(&frame).map_err(broken)? {
        Put::Stored => true,
        Put::Full => false,
        Put::Refused(reason) => bail!("a frame of {} bytes was refused: {reason:?}", bytes.len()),
    };
    if sender.publish()
        && let Some(eventfd) = sender.notify_fd()
    {
        // Full means that it rings already.
        let _ = nix::unistd::write(eventfd, &1u64.to_ne_bytes());
    }
    Ok(stored)
}

/// The frames that are there now, at most a burst.
pub(super) fn receive(end: &mut End, gather: &mut [u8]) -> Result<Vec<Vec<u8>>> {
    let (_, receiver) = queue(end);
    let broken = |fault| anyhow::anyhow!("the peer broke the protocol: {fault:?}");
    let mut frames = Vec::new();
    receiver.refresh().map_err(broken)?;
    while frames.len() < BURST
        && let Some(frame) = receiver.peek(gather).map_err(broken)?
    {
        let mut bytes = vec![0; frame.bytes.len()];
        ensure!(frame.bytes.copy_out(&mut bytes), "the copy is as long as the frame");
        let slots = frame.slots;
        receiver.advance(slots);
        frames.push(bytes);
    }
    receiver.release();
    if !frames.is_empty()
        && let Some(eventfd) = receiver.release_notify_fd()
    {
        let _ = nix::unistd::write(eventfd, &1u64.to_ne_bytes());
    }
    Ok(frames)
}

/// Answers pings to every address at this end.
pub(super) fn responder(mut end: End, mode: Mode) -> Server {
    let brain = Responder::new(MacAddress([2, 0, 0, 0, 0, 0xfe]), Vec::new()).in_mode(mode);
    let (mut reply, mut gather) = (vec![0; FRAME_MAX], vec![0; FRAME_MAX]);
    Server::start(move || {
        let frames = receive(&mut end, &mut gather).expect("the forwarder keeps to the protocol");
        for frame in &frames {
            if let Some(length) = brain.answer(frame, &mut reply) {
                // A reply that finds no room is a ping lost, which the test sees.
                send(&mut end, &reply[..length]).expect("the forwarder keeps to the protocol");
            }
        }
        if frames.is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        true
    })
}

/// The longest frame that a connection carries: an end that sends a longer one has not read its context.
fn frame_max(made: &Connection) -> Result<usize> {
    let mtu = made.context.as_ref().map_or(0, |context| context.mtu);
    Ok(usize::try_from(if mtu == 0 { 1500 } else { mtu })? + ETHERNET_HEADER)
}

/// Frames of several sizes both ways, each compared with what was sent.
fn exchange(near: &mut End, far: &mut End, mode: Mode, longest: usize) -> Result<()> {
    wait_first(near, far, mode)?;
    wait_first(far, near, mode)?;
    let mut there = Way::new(mode, longest)?;
    let mut back = Way::new(mode, longest)?;
    let end = Instant::now() + TIMEOUT;
    while !there.is_done() || !back.is_done() {
        let moved = there.step(near, far)? + back.step(far, near)?;
        ensure!(
            Instant::now() < end,
            "of {FRAMES} frames each way {:?} and {:?} came",
            there.sink.tally(),
            back.sink.tally()
        );
        if moved == 0 {
            thread::yield_now();
        }
    }
    Ok(())
}

/// Sends a frame until one comes: the kernel takes a moment to see that a link is there.
fn wait_first(from: &mut End, to: &mut End, mode: Mode) -> Result<()> {
    let mut gather = vec![0; FRAME_MAX];
    wait_until("a first frame comes", || {
        send(from, probe(mode))?;
        Ok(!receive(to, &mut gather)?.is_empty())
    })
}

/// Frames in one direction, no more under way than a ring holds.
struct Way {
    mode: Mode,
    patterns: Vec<Pattern>,
    sink: Sink,
    sent: u64,
    gather: Vec<u8>,
}

impl Way {
    fn new(mode: Mode, longest: usize) -> Result<Self> {
        let sizes = [64, 300, longest];
        let pattern = |(flow, size): (usize, usize)| Pattern::new(size, flow as u32, Addresses::default());
        let patterns = sizes.into_iter().enumerate().map(pattern).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { mode, patterns, sink: Sink::new(0..sizes.len() as u32, true), sent: 0, gather: vec![0; FRAME_MAX] })
    }

    fn step(&mut self, from: &mut End, to: &mut End) -> Result<u64> {
        let before = self.sent;
        while self.sent < FRAMES && self.sent - self.sink.tally().frames < WINDOW {
            let sizes = self.patterns.len() as u64;
            let frame = self.patterns[(self.sent % sizes) as usize].fill(self.sent / sizes);
            let header = if self.mode == Mode::Ip { ETHERNET_HEADER } else { 0 };
            if !send(from, &frame[header..])? {
                break;
            }
            self.sent += 1;
        }
        let frames = receive(to, &mut self.gather)?;
        for frame in frames.iter().filter(|frame| *frame != probe(self.mode)) {
            let header = if self.mode == Mode::Ip { ETHERNET_HEADER } else { 0 };
            self.sink.see(&[&self.patterns[0].frame()[..header], frame].concat());
        }
        let tally = self.sink.tally();
        ensure!((tally.corrupt, tally.reordered, tally.duplicated, tally.foreign) == (0, 0, 0, 0), "{tally:?}");
        Ok(self.sent - before + frames.len() as u64)
    }

    fn is_done(&self) -> bool {
        self.sent == FRAMES && self.sink.tally().frames == FRAMES
    }
}

/// Something short that is not of any pattern.
fn probe(mode: Mode) -> &'static [u8] {
    match mode {
        Mode::Ethernet => &PROBE,
        Mode::Ip => &PROBE_PACKET,
    }
}

const SOCKET_FILE: &str = "socketfile";
const NEAR_ADDRESS: &str = "10.77.0.1";
const FAR_ADDRESS: &str = "10.77.0.2";
const PINGS: usize = 20;
/// As much as the smallest of the tunnels carries, by IPv6, and a little less.
const PING_SIZE: u32 = 1372;
const FRAMES: u64 = 3000;
const ETHERNET_HEADER: usize = 14;
/// Of a type that is nobody's.
const PROBE: [u8; 60] = {
    let mut frame = [0xff; 60];
    (frame[6], frame[12], frame[13]) = (2, 0x88, 0xb5);
    frame
};
/// Of IPv4, with nothing in it.
const PROBE_PACKET: [u8; 20] = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
const WINDOW: u64 = 64;
