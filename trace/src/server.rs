//! The frames of a capture are sent to whoever asked for them.
//!
//! A thread of its own reads the capture. It may wait for its reader; then the capture runs full, and what finds no room is counted there.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ferrule_daemon::Phase;
use ferrule_dataplane::capture::{Capture, CapturedFrame};
use ferrule_dataplane::port::FRAME_MAX;
use ferrule_ffi::ticks;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::filter::Filter;
use crate::v1;
use crate::v1::trace_server::{Trace, TraceServer};

/// What can be traced.
pub trait Tapped: Send + Sync + 'static {
    /// Has copies of a target's frames put into a capture, until [`Self::untap`] or the target's end. It may block for a moment.
    fn tap(&self, target: &str, capture: &Arc<Capture>) -> Result<Tap, Status>;

    /// Ends it. Nobody holds the capture soon afterwards.
    fn untap(&self, tap: &Tap);
}

/// A target that is traced.
#[derive(Clone, Debug)]
pub struct Tap {
    /// Which.
    pub target: String,
    /// What its ends are called.
    pub interfaces: Vec<String>,
    /// Whether its frames begin with an IP header.
    pub is_ip: bool,
}

/// Serves traces of what is tapped, until the daemon stops.
pub fn service<T: Tapped>(tapped: Arc<T>, phase: watch::Receiver<Phase>) -> TraceServer<impl Trace> {
    TraceServer::new(Service { tapped, phase, readers: Arc::new(Semaphore::new(READERS_MAX)) })
}

struct Service<T> {
    tapped: Arc<T>,
    phase: watch::Receiver<Phase>,
    readers: Arc<Semaphore>,
}

#[tonic::async_trait]
impl<T: Tapped> Trace for Service<T> {
    type TraceStream = ReceiverStream<Result<v1::TraceResponse, Status>>;

    async fn trace(&self, request: Request<v1::TraceRequest>) -> Result<Response<Self::TraceStream>, Status> {
        let v1::TraceRequest { target, filter, snap_len } = request.into_inner();
        let filter = Filter::read(&filter.unwrap_or_default());
        let filter = filter.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let permit = Arc::clone(&self.readers).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{READERS_MAX} traces are read already; end one of them"))
        })?;
        let snap_len = if snap_len == 0 { FRAME_MAX } else { (snap_len as usize).clamp(SNAP_MIN, FRAME_MAX) };
        let (tapped, phase) = (Arc::clone(&self.tapped), self.phase.clone());
        // When the call is cut off meanwhile nobody reads, and the reader ends by itself.
        let begin = move || {
            let capture = Arc::new(Capture::new((RING_BYTES / snap_len).min(RING_FRAMES_MAX), snap_len));
            let tap = tapped.tap(&target, &capture)?;
            let (sender, receiver) = mpsc::channel(1);
            let undo = (Arc::clone(&tapped), tap.clone());
            let clock = WallClock::now();
            let reader = Reader { capture, filter, tap, clock, half: None, sender, phase, _permit: permit };
            let started = thread::Builder::new().name("trace".to_owned()).spawn(move || reader.run(&*tapped));
            started.map_err(|error| {
                undo.0.untap(&undo.1);
                Status::resource_exhausted(format!("start a thread for this trace: {error}"))
            })?;
            Ok::<_, Status>(receiver)
        };
        let begun = spawn_blocking(begin).await;
        let receiver = begun.map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct Reader {
    capture: Arc<Capture>,
    filter: Filter,
    tap: Tap,
    clock: WallClock,
    /// A frame as it came in, while its other half is not there yet, and whether it fits.
    half: Option<(v1::TracedFrame, bool)>,
    sender: mpsc::Sender<Result<v1::TraceResponse, Status>>,
    phase: watch::Receiver<Phase>,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    fn run(mut self, tapped: &impl Tapped) {
        let first = v1::TraceResponse {
            interfaces: self.tap.interfaces.clone(),
            is_ip: self.tap.is_ip,
            ..v1::TraceResponse::default()
        };
        let mut is_read = self.sender.blocking_send(Ok(first)).is_ok();
        let mut missed = 0;
        while is_read && !self.sender.is_closed() && *self.phase.borrow_and_update() != Phase::Stopped {
            // What was captured until it went is read first.
            let is_gone = Arc::strong_count(&self.capture) == 1;
            let (frames, is_all) = self.read();
            let misses = self.capture.dropped();
            if !frames.is_empty() || misses != missed {
                missed = misses;
                let more = v1::TraceResponse { frames, missed, ..v1::TraceResponse::default() };
                is_read = self.sender.blocking_send(Ok(more)).is_ok();
            } else if !is_all {
                // None of those fits, and more are there.
            } else if is_gone {
                let status = Status::aborted(format!("`{}` is gone", self.tap.target));
                // It is the last word.
                let _ = self.sender.blocking_send(Err(status));
                break;
            } else {
                thread::sleep(NAP);
            }
        }
        // What has gone is tapped no more: there may be another one of its name, which somebody else looks at.
        if Arc::strong_count(&self.capture) > 1 {
            tapped.untap(&self.tap);
        }
        let until = Instant::now() + LETTING_GO;
        // Whoever copies frames frees no memory.
        while Arc::strong_count(&self.capture) > 1 && Instant::now() < until {
            thread::sleep(NAP);
        }
    }

    /// Those of now that fit, up to some, and whether that were all: a wire may be faster than we look. A frame that leaves otherwise than it
    /// came in is sent both times if either fits: the first half waits for the second one, which the same thread puts next.
    fn read(&mut self) -> (Vec<v1::TracedFrame>, bool) {
        let mut frames = Vec::new();
        let mut bytes = 0;
        for _ in 0..LOOK_MAX {
            let seen = self.capture.read(|frame| {
                let fits = self.filter.fits(frame.bytes(), self.tap.is_ip, frame.remark());
                // What is not sent is not copied.
                let may_be_sent = fits || frame.is_followed || self.half.is_some();
                may_be_sent.then(|| (self.traced(frame), fits, frame.is_followed))
            });
            let Some(seen) = seen else { return (frames, true) };
            let Some((frame, fits, is_followed)) = seen else { continue };
            let (first, is_either) = match self.half.take() {
                Some((first, first_fits)) => (Some(first), first_fits || fits),
                None => (None, fits),
            };
            if is_followed {
                self.half = Some((frame, fits));
            } else if is_either {
                for frame in first.into_iter().chain([frame]) {
                    bytes += frame.bytes.len();
                    frames.push(frame);
                }
            }
            if bytes >= MESSAGE_BYTES {
                break;
            }
        }
        (frames, false)
    }

    fn traced(&self, frame: &CapturedFrame) -> v1::TracedFrame {
        let remark = frame.remark();
        v1::TracedFrame {
            time_ns: self.clock.at(frame.ticks),
            interface: frame.end as u32,
            outbound: frame.is_outbound,
            length: u32::try_from(frame.length).unwrap_or(u32::MAX),
            bytes: frame.bytes().to_vec(),
            dropped: remark.dropped,
            word: remark.word.to_owned(),
            rule: remark.rule.to_owned(),
        }
    }
}

/// The time of day for ticks of the CPU.
#[derive(Clone, Copy, Debug)]
struct WallClock {
    ticks: u64,
    nanos: u64,
}

impl WallClock {
    fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { ticks: ticks::now(), nanos: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX) }
    }

    fn at(self, ticks: u64) -> u64 {
        let nanos = |ticks| u64::try_from(ticks::time(ticks).as_nanos()).unwrap_or(u64::MAX);
        match ticks.checked_sub(self.ticks) {
            Some(later) => self.nanos.saturating_add(nanos(later)),
            None => self.nanos.saturating_sub(nanos(self.ticks - ticks)),
        }
    }
}

/// Traces that are read at a time. Each has a thread, and memory.
const READERS_MAX: usize = 16;
/// Memory of a capture, and frames in it.
const RING_BYTES: usize = 32 << 20;
const RING_FRAMES_MAX: usize = 16 << 10;
/// The headers of a frame.
const SNAP_MIN: usize = 64;
/// Bytes of frames in a message, more or less.
const MESSAGE_BYTES: usize = 256 << 10;
/// Frames that are looked at before those that fit are sent, and it is seen whether anybody still reads.
const LOOK_MAX: usize = 4 << 10;
/// Between two looks at a capture that is empty.
const NAP: Duration = Duration::from_millis(2);
/// How long a worker may take to hear that nobody reads any more.
const LETTING_GO: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, channel};

    use ferrule_dataplane::capture::Remark;
    use tokio_stream::StreamExt as _;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    /// Has one target, whose frames a test puts.
    #[derive(Default)]
    struct Target {
        capture: Mutex<Option<Arc<Capture>>>,
        /// How often it was to be tapped, and no more.
        begun: watch::Sender<usize>,
        ended: watch::Sender<usize>,
        /// What it waits for before it is tapped.
        gate: Mutex<Option<Receiver<()>>>,
    }

    impl Target {
        fn capture(&self) -> Arc<Capture> {
            Arc::clone(self.capture.lock().unwrap().as_ref().unwrap())
        }

        fn put(&self, end: usize, port: u8, remark: Remark<'_>, is_followed: bool) {
            let capture = self.capture();
            let taken = capture.take(ticks::now(), end, end == 1, &udp(port));
            capture.put(taken.unwrap(), remark, is_followed);
        }
    }

    impl Tapped for Target {
        fn tap(&self, target: &str, capture: &Arc<Capture>) -> Result<Tap, Status> {
            self.begun.send_modify(|count| *count += 1);
            if let Some(gate) = self.gate.lock().unwrap().take() {
                gate.recv().unwrap();
            }
            *self.capture.lock().unwrap() = Some(Arc::clone(capture));
            let interfaces = vec!["client".to_owned(), "network".to_owned()];
            Ok(Tap { target: target.to_owned(), interfaces, is_ip: true })
        }

        fn untap(&self, _: &Tap) {
            self.capture.lock().unwrap().take();
            self.ended.send_modify(|count| *count += 1);
        }
    }

    /// Waits until something was done so often.
    async fn wait_for(done: &watch::Sender<usize>, wanted: usize) {
        let mut done = done.subscribe();
        let waited = tokio::time::timeout(DEADLINE, done.wait_for(|count| *count == wanted)).await;
        waited.expect("it is not done in time").unwrap();
    }

    fn udp(port: u8) -> Vec<u8> {
        let ip = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        [&ip[..], &[0, port, 0, 99, 0, 8, 0, 0]].concat()
    }

    fn service(target: &Arc<Target>) -> Service<Target> {
        Service {
            tapped: Arc::clone(target),
            phase: watch::Sender::new(Phase::Serving).subscribe(),
            readers: Arc::new(Semaphore::new(2)),
        }
    }

    fn request(ports: Vec<u32>, snap_len: u32) -> Request<v1::TraceRequest> {
        let filter = Some(v1::Filter { ports, ..v1::Filter::default() });
        Request::new(v1::TraceRequest { target: "t".to_owned(), filter, snap_len })
    }

    async fn trace(
        service: &Service<Target>,
        ports: Vec<u32>,
        snap_len: u32,
    ) -> ReceiverStream<Result<v1::TraceResponse, Status>> {
        let mut stream = service.trace(request(ports, snap_len)).await.unwrap().into_inner();
        let first = stream.next().await.unwrap().unwrap();
        assert_eq!((first.interfaces, first.is_ip), (vec!["client".to_owned(), "network".to_owned()], true));
        stream
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_frame_that_leaves_otherwise_than_it_came_in_is_sent_both_times_if_either_fits() {
        let target = Arc::new(Target::default());
        let mut stream = trace(&service(&target), vec![7], 0).await;
        let none = Remark::default();
        target.put(0, 1, none, false);
        target.put(0, 2, none, true);
        target.put(1, 7, none, false);
        target.put(0, 7, none, true);
        target.put(1, 3, none, false);
        target.put(0, 4, none, true);
        target.put(1, 5, none, false);
        target.put(0, 7, Remark { dropped: true, word: "rule", rule: "web" }, false);
        let mut seen = Vec::new();
        while seen.len() < 5 {
            seen.extend(stream.next().await.unwrap().unwrap().frames);
        }
        let told: Vec<_> = seen.iter().map(|frame| (frame.interface, frame.bytes[21])).collect();
        assert_eq!(told, [(0, 2), (1, 7), (0, 7), (1, 3), (0, 7)]);
        assert_eq!((seen[4].dropped, seen[4].word.as_str(), seen[4].rule.as_str()), (true, "rule", "web"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        assert!(now.abs_diff(seen[0].time_ns.into()) < 60_000_000_000, "{}", seen[0].time_ns);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reader_that_does_not_read_holds_nobody_up_and_what_it_missed_is_counted() {
        let target = Arc::new(Target::default());
        let mut stream = trace(&service(&target), Vec::new(), 64).await;
        let capture = target.capture();
        let mut put = 0;
        // More than the capture, the messages under way and the channel have room for.
        while capture.dropped() == 0 {
            if let Some(frame) = capture.take(ticks::now(), 0, false, &udp(1)) {
                capture.put(frame, Remark::default(), false);
                put += 1;
            }
        }
        drop(capture);
        let mut seen = 0;
        let mut missed = 0;
        while seen < put {
            let more = stream.next().await.unwrap().unwrap();
            seen += more.frames.len();
            missed = missed.max(more.missed);
        }
        assert!(missed > 0);
        drop(stream);
        wait_for(&target.ended, 1).await;
    }

    /// Of port 7.
    fn reader(capture: &Arc<Capture>) -> Reader {
        Reader {
            capture: Arc::clone(capture),
            filter: Filter::read(&v1::Filter { ports: vec![7], ..v1::Filter::default() }).unwrap(),
            tap: Tap { target: "t".to_owned(), interfaces: Vec::new(), is_ip: true },
            clock: WallClock::now(),
            half: None,
            sender: mpsc::channel(1).0,
            phase: watch::Sender::new(Phase::Serving).subscribe(),
            _permit: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
        }
    }

    fn put(capture: &Capture, end: usize, port: u8, is_followed: bool) {
        let frame = capture.take(ticks::now(), end, end == 1, &udp(port)).expect("there is room");
        capture.put(frame, Remark::default(), is_followed);
    }

    #[test]
    fn a_half_waits_for_the_other_one_however_late_that_is() {
        let capture = Arc::new(Capture::new(4, 64));
        let mut reader = reader(&capture);
        let mut read = || {
            let (frames, is_all) = reader.read();
            assert!(is_all);
            frames.iter().map(|frame| frame.bytes[21]).collect::<Vec<_>>()
        };
        for (first, second, sent) in [(1, 7, vec![1, 7]), (7, 1, vec![7, 1]), (1, 2, vec![])] {
            put(&capture, 0, first, true);
            assert_eq!(read(), [0; 0], "whoever copies frames is held up between the two");
            put(&capture, 1, second, false);
            assert_eq!(read(), sent);
        }
    }

    #[test]
    fn frames_that_fit_do_not_wait_for_those_that_do_not() {
        let capture = Arc::new(Capture::new(2 * LOOK_MAX, 64));
        put(&capture, 0, 7, false);
        (1..2 * LOOK_MAX).for_each(|_| put(&capture, 0, 1, false));
        let mut reader = reader(&capture);
        let reads: Vec<_> = (0..3).map(|_| reader.read()).map(|(frames, is_all)| (frames.len(), is_all)).collect();
        assert_eq!(reads, [(1, false), (0, false), (0, true)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_call_that_is_cut_off_while_its_target_is_being_tapped_taps_nothing() {
        let target = Arc::new(Target::default());
        let (go_on, gate) = channel();
        *target.gate.lock().unwrap() = Some(gate);
        let calling = service(&target);
        let call = tokio::spawn(async move { calling.trace(request(Vec::new(), 0)).await.map(drop) });
        wait_for(&target.begun, 1).await;
        call.abort();
        assert!(call.await.is_err_and(|error| error.is_cancelled()));
        go_on.send(()).unwrap();
        wait_for(&target.ended, 1).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_target_of_the_same_name_is_another_one() {
        let target = Arc::new(Target::default());
        let service = service(&target);
        let first = trace(&service, Vec::new(), 64).await;
        // It has more to read than there is room for: its reader waits.
        let capture = target.capture();
        while capture.dropped() == 0 {
            if let Some(frame) = capture.take(ticks::now(), 0, false, &udp(1)) {
                capture.put(frame, Remark::default(), false);
            }
        }
        drop((capture, target.capture.lock().unwrap().take()));
        let mut second = trace(&service, Vec::new(), 64).await;
        drop(first);
        let ended = tokio::time::timeout(DEADLINE, service.readers.acquire()).await;
        drop(ended.expect("the first reader ends").unwrap());
        target.put(0, 2, Remark::default(), false);
        assert_eq!(second.next().await.unwrap().unwrap().frames[0].bytes[21], 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_trace_ends_with_what_it_is_of() {
        let target = Arc::new(Target::default());
        let mut stream = trace(&service(&target), Vec::new(), 0).await;
        target.put(0, 1, Remark::default(), false);
        target.capture.lock().unwrap().take();
        assert_eq!(stream.next().await.unwrap().unwrap().frames.len(), 1);
        let status = stream.next().await.unwrap().unwrap_err();
        assert_eq!((status.code(), status.message()), (tonic::Code::Aborted, "`t` is gone"));
    }
}
