//! Two pods with a vhost-user socket each, as where virtual machines run: what a machine's NIC would be is a frontend of ours.

use std::io;
use std::panic::resume_unwind;
use std::sync::atomic::AtomicBool;
use std::thread;

use ferrule_bench::generator::{self, Outcome};
use ferrule_bench::load::{Load, Mix, Pace, Stop as StopAfter, Touch};
use ferrule_bench::traffic::Addresses;
use ferrule_dataplane::spec::SocketAddress;
use ferrule_endpoints::end::{End, EndSpec};
use ferrule_endpoints::vhost_user::FrontendSpec;
use ferrule_kubelet::v1beta1::ContainerAllocateResponse;

use super::container::Container;
use crate::demo::rate;
use crate::demo::testbed::Testbed;

/// Both NICs, connected.
pub(super) struct Guests([End; 2]);

impl Guests {
    /// Each connects to its pod's socket, at the path that it has in the pod.
    pub(super) fn open(testbed: &Testbed, given: &[(ContainerAllocateResponse, String); 2]) -> Result<Self, String> {
        let open = |side: usize| {
            let (given, socket) = &given[side];
            let spec = EndSpec::Vhost(FrontendSpec::new(SocketAddress::Path(socket.into())));
            let container = Container { netns: testbed.namespace(side), mounts: &given.mounts, files: Vec::new() };
            let opened = container.run(move || End::open(&spec, rate::TIMEOUT).map_err(io::Error::other));
            opened.map_err(|error| format!("connect to {socket} in the pod: {error}"))
        };
        Ok(Self([open(0)?, open(1)?]))
    }

    /// Sends frames both ways at once. Returns what was seen, if every one of them arrived once, in order and intact.
    pub(super) fn exchange(&mut self) -> Result<String, String> {
        let mix = Mix::new(SIZES).map_err(|error| error.to_string())?;
        let load = Load {
            mix,
            flows: 1,
            addresses: Addresses::default().both_ways(),
            both_ways: true,
            touch: Touch::Whole,
            pace: Pace::Saturate,
            stop: StopAfter::Frames(FRAMES),
            warm_up: std::time::Duration::ZERO,
            latency: false,
        };
        let [near, far] = &mut self.0;
        // The generator polls: not on the thread that looks after the kubelet.
        let work = || generator::run(&load, near, far, &AtomicBool::new(false)).map_err(|error| error.to_string());
        let run = thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| resume_unwind(panic)))?;
        let outcomes: Vec<&Outcome> = run.outcomes().collect();
        match outcomes.iter().find_map(|outcome| rate::problem(SIZES[0], outcome)) {
            Some(problem) => Err(problem),
            None if outcomes.len() < 2 => Err("nothing was sent back".to_owned()),
            None => Ok(format!("{FRAMES} frames of {} to {} B each way, all intact", SIZES[0], SIZES[2])),
        }
    }
}

const FRAMES: u64 = 20_000;
/// In turn.
const SIZES: [usize; 3] = [64, 512, 1514];
