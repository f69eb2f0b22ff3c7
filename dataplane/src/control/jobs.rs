//! What may be slow in the kernel runs on threads of its own: control sends a job and gets a [`Done`] back.
//!
//! - *Makers* make interfaces: a few, since the kernel makes interfaces one after the other anyway. They populate memory too.
//! - *Device threads* make devices of other crates. Others close them, others ask what they are doing, and others again tell
//!   them of their links: each call may hang, and as many devices that hang in one of these must not keep others from the rest. A
//!   question that waits for its turn keeps no device from being closed.
//! - *Socket threads* do what looks a socket's path up, and may hang with its file system ([`super::socket_jobs`]).
//! - *Closers* close interfaces that we made. A removal waits for them.
//! - *Reapers* drop what peers gave us: their sockets, descriptors and memory. Each can be held up by one peer (a socket
//!   that lingers, gigabytes to unmap), so there can be many, and nobody waits for them. What waits for them is bounded
//!   by its [`ReapAccount`]: who gives us more than is dropped is not listened to.
//! - One thread looks after interfaces: carriers in the order in which they were wanted, counters.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::done::{DeviceNews, Done, Look, MakeError, NewDevice, SocketOutcome};
use super::health::{HealthCell, ThreadGuard};
use super::inbox::{ControlMessage, Inbox};
use super::keys::{EndId, SocketJobId, WireKey};
use crate::port::any::LaneEnd;
use crate::port::device::{Device, DeviceContext, DeviceLink, DeviceSpec, LossNotice, MadeDevice};
use crate::port::kernel::{InterfaceOwner, VethPair};
use crate::socket::Listener;
use crate::spec::{KernelSpec, SocketAddress, WireSpec};
use ferrule_ffi::region::Region;

/// What reapers have not dropped yet of what the peers of an end, or of a listening socket, gave us.
#[derive(Clone, Debug, Default)]
pub struct ReapAccount(Arc<AtomicUsize>);

impl ReapAccount {
    /// Whether its peers have to wait. Each thing is bounded by what a connection may have.
    pub fn is_full(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= REAPED_MAX
    }

    /// One thing more, until the share is dropped.
    pub fn hold(&self) -> ReapShare {
        self.0.fetch_add(1, Ordering::Relaxed);
        ReapShare(self.clone())
    }
}

/// One of these things, until it is dropped.
pub struct ReapShare(ReapAccount);

impl Drop for ReapShare {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A job that waits for its turn, and can be cancelled until then.
#[derive(Clone, Default)]
pub struct Ticket(Arc<AtomicU8>);

impl Ticket {
    /// `true`: it will not be done, and nothing comes of it. `false`: it has begun, and what becomes of it will be told.
    pub fn cancel(&self) -> bool {
        self.leave_queue(CANCELLED)
    }

    fn begin(&self) -> bool {
        self.leave_queue(BEGUN)
    }

    fn leave_queue(&self, state: u8) -> bool {
        self.0.compare_exchange(QUEUED, state, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

const QUEUED: u8 = 0;
const BEGUN: u8 = 1;
const CANCELLED: u8 = 2;

/// What a socket thread does.
pub type SocketTask = Box<dyn FnOnce() -> SocketOutcome + Send>;

/// The threads.
pub struct Jobs {
    makers: Pool,
    devices: Pool,
    device_closers: Pool,
    device_looks: Pool,
    device_links: Pool,
    sockets: Pool,
    closers: Pool,
    reapers: Pool,
    interfaces: Pool,
    inbox: Inbox,
    /// Who the pairs belong to.
    owner: Arc<InterfaceOwner>,
}

impl Jobs {
    /// Each kind of job has one thread from now on; more start when there is work for them. A job that panics is one
    /// of which `health` tells.
    pub fn new(inbox: Inbox, owner: impl Into<Arc<InterfaceOwner>>, health: &HealthCell) -> io::Result<Self> {
        let pool = |name, threads_max| Pool::new(name, threads_max, health, &inbox);
        Ok(Self {
            makers: pool("maker", MAKERS_MAX)?,
            devices: pool("device", DEVICE_THREADS_MAX)?,
            device_closers: pool("device closer", DEVICE_THREADS_MAX)?,
            device_looks: pool("device look", DEVICE_THREADS_MAX)?,
            device_links: pool("device link", DEVICE_THREADS_MAX)?,
            sockets: pool("socket", SOCKET_THREADS_MAX)?,
            closers: pool("closer", CLOSERS_MAX)?,
            reapers: pool("reaper", REAPERS_MAX)?,
            interfaces: pool("interfaces", 1)?,
            inbox,
            owner: owner.into(),
        })
    }

    /// Does what looks up the address of a socket.
    pub fn at_socket(&self, id: SocketJobId, address: SocketAddress, task: SocketTask) {
        self.tell(&self.sockets, Done::Socket(id, SocketOutcome::Panicked(address)), move || Done::Socket(id, task()));
    }

    /// Does what nobody waits for any more.
    pub fn at_socket_unwatched(&self, task: SocketTask) {
        self.sockets.submit(move || drop(task()));
    }

    /// Makes a device of that number for an end of a wire.
    pub(super) fn make_device(&self, end: EndId, number: u64, wire: &WireSpec, spec: Arc<dyn DeviceSpec>) -> Ticket {
        let made = move |made| Done::Device(end, number, DeviceNews::Made(made));
        let inbox = self.inbox.clone();
        let loss =
            LossNotice::new(move || inbox.post(ControlMessage::Done(Done::Device(end, number, DeviceNews::Lost))));
        let unfinished = wire.ends[1 - end.end].takes_offloads();
        let context = DeviceContext { wire: wire.name.clone(), end: end.end, unfinished, loss };
        let pool = if spec.is_made_by_kernel() { &self.makers } else { &self.devices };
        self.make(pool, made(Err(PANICKED.to_owned())), move || made(make_device(&*spec, context)))
    }

    /// Makes the veth pair of a wire.
    pub fn make_veth(&self, wire: WireKey, name: String, specs: [KernelSpec; 2]) -> Ticket {
        let owner = Arc::clone(&self.owner);
        let lost = Done::Veth(wire, Err(MakeError { end: 0, problem: PANICKED.to_owned() }));
        self.make(&self.makers, lost, move || {
            let made = VethPair::create(&owner, &name, [&specs[0], &specs[1]]);
            Done::Veth(wire, made.map_err(|(end, error)| MakeError { end, problem: error.to_string() }))
        })
    }

    fn make(&self, pool: &Pool, lost: Done, make: impl FnOnce() -> Done + Send + 'static) -> Ticket {
        let ticket = Ticket::default();
        let (queued, inbox) = (ticket.clone(), self.inbox.clone());
        pool.submit(move || {
            if queued.begin() {
                Answer { inbox, done: Some(lost) }.post(make);
            }
        });
        ticket
    }

    /// Closes the veth pair that a wire had made, as soon as nobody looks at it any more.
    pub fn close_pair(&self, wire: WireKey, pair: Arc<VethPair>) {
        self.tell(&self.closers, Done::Closed(wire), move || {
            drop(LastOwner(pair));
            Done::Closed(wire)
        });
    }

    /// Closes the device that a wire had, after its rings.
    pub(super) fn close_device(&self, wire: WireKey, rings: Vec<LaneEnd>, device: Arc<dyn Device>) {
        self.tell(self.closer(&*device), Done::Closed(wire), move || {
            close_device(rings, device);
            Done::Closed(wire)
        });
    }

    /// The same for one that is lost, and of a wire that stays.
    pub(super) fn close_lost(&self, end: EndId, number: u64, rings: Vec<LaneEnd>, device: Arc<dyn Device>) {
        let pool = self.closer(&*device);
        self.tell(pool, Done::Device(end, number, DeviceNews::Closed), move || {
            close_device(rings, device);
            Done::Device(end, number, DeviceNews::Closed)
        });
    }

    /// Closes a device that nobody wants any more.
    pub(super) fn discard_device(&self, made: NewDevice) {
        let NewDevice { device, rings, .. } = made;
        self.closer(&*device).submit(move || close_device(vec![rings], device));
    }

    fn closer(&self, device: &dyn Device) -> &Pool {
        if device.answers_at_once() { &self.closers } else { &self.device_closers }
    }

    /// Closes what nobody wants any more.
    pub fn discard(&self, what: impl Send + 'static) {
        self.closers.submit(move || drop(what));
    }

    /// Closes listening sockets when control ends, and waits a moment for it: their names should be free, and their files
    /// gone.
    pub fn close_sockets(&self, listeners: Vec<Listener>) {
        let (closing, closed) = std::sync::mpsc::channel::<()>();
        for listener in listeners {
            let closing = closing.clone();
            self.sockets.submit(move || {
                drop(listener);
                drop(closing);
            });
        }
        drop(closing);
        // It ends when the last one is closed.
        let _ = closed.recv_timeout(LAST_CLOSE_MAX);
    }

    /// Drops what a peer gave us.
    pub fn reap(&self, account: &ReapAccount, what: impl Send + 'static) {
        let share = account.hold();
        self.reapers.submit(move || {
            drop(what);
            drop(share);
        });
    }

    /// Populates memory of ours that a new connection has, while its lanes may use it already.
    pub fn populate(&self, regions: Vec<Region>) {
        self.makers.submit(move || regions.iter().for_each(Region::populate));
    }

    /// Tells a device whether somebody is at the other end.
    pub(super) fn set_link(&self, link: &Arc<DeviceLink>) {
        let pool = if link.answers_at_once() { &self.interfaces } else { &self.device_links };
        // Who closes the device drops its link first, and waits for those that have begun.
        let link = Arc::downgrade(link);
        pool.submit(move || {
            if let Some(link) = link.upgrade() {
                link.tell();
            }
        });
    }

    /// Looks at interfaces: reads the counters of pairs, and asks devices that answer at once what they are doing.
    pub(super) fn look(&self, pairs: Vec<(WireKey, Arc<VethPair>)>, devices: Vec<(EndId, u64, Arc<dyn Device>)>) {
        self.tell(&self.interfaces, Done::Looked(Look::default()), move || {
            let pairs = pairs.into_iter().map(|(wire, pair)| (wire, pair.status())).collect();
            let devices = devices.into_iter().map(|(end, number, device)| (end, number, device.status())).collect();
            Done::Looked(Look { pairs, devices })
        });
    }

    /// Reads the counters of one pair.
    pub(super) fn look_at_pair(&self, wire: WireKey, pair: Arc<VethPair>) {
        self.tell(&self.interfaces, Done::LookedAt(wire, None), move || Done::LookedAt(wire, Some(pair.status())));
    }

    /// Asks a device what it is doing that may take its time.
    pub(super) fn look_at_device(&self, end: EndId, number: u64, device: &Arc<dyn Device>) {
        let news = move |status| Done::Device(end, number, DeviceNews::Status(status));
        let device = Arc::downgrade(device);
        self.tell(&self.device_looks, news(Err(PANICKED.to_owned())), move || {
            news(device.upgrade().map_or_else(|| Err(CLOSED.to_owned()), |device| device.status()))
        });
    }

    /// Has a job done of which control is told: `lost`, if it panics.
    fn tell(&self, pool: &Pool, lost: Done, job: impl FnOnce() -> Done + Send + 'static) {
        let inbox = self.inbox.clone();
        pool.submit(move || Answer { inbox, done: Some(lost) }.post(job));
    }
}

/// What control is told of a job, whatever becomes of it: it waits for that.
struct Answer {
    inbox: Inbox,
    done: Option<Done>,
}

impl Answer {
    fn post(mut self, job: impl FnOnce() -> Done) {
        self.done = Some(job());
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            self.inbox.post(ControlMessage::Done(done));
        }
    }
}

fn make_device(spec: &dyn DeviceSpec, context: DeviceContext) -> Result<NewDevice, String> {
    let MadeDevice { device, rings } = spec.make(&context)?;
    match device.status() {
        Ok(status) => Ok(NewDevice { device, rings, status, loss: context.loss }),
        Err(reason) => {
            close_device(vec![rings], device);
            Err(reason)
        }
    }
}

fn close_device(rings: Vec<LaneEnd>, device: Arc<dyn Device>) {
    drop(rings);
    drop(LastOwner(device));
}

/// Closes what threads may still be looking at as soon as none of them is.
struct LastOwner<T: ?Sized>(Arc<T>);

impl<T: ?Sized> Drop for LastOwner<T> {
    fn drop(&mut self) {
        while Arc::strong_count(&self.0) > 1 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Threads that take tasks in their order. One is always there, so that every task has its turn also when no other
/// can be started; others start when no thread is free, and end when there was no work for a while.
struct Pool {
    name: &'static str,
    tasks: Sender<Task>,
    shared: Arc<PoolShared>,
}

type Task = Box<dyn FnOnce() + Send>;

struct PoolShared {
    queue: Receiver<Task>,
    threads_max: usize,
    threads: AtomicUsize,
    /// Tasks that wait or run.
    unfinished: AtomicUsize,
    health: HealthCell,
    inbox: Inbox,
}

impl Pool {
    fn new(name: &'static str, threads_max: usize, health: &HealthCell, inbox: &Inbox) -> io::Result<Self> {
        let (tasks, queue) = unbounded();
        let shared = Arc::new(PoolShared {
            queue,
            threads_max,
            threads: AtomicUsize::new(1),
            unfinished: AtomicUsize::new(0),
            health: health.clone(),
            inbox: inbox.clone(),
        });
        let pool = Self { name, tasks, shared };
        pool.spawn(|shared| shared.queue.iter().for_each(|task| shared.run(task)))?;
        Ok(pool)
    }

    fn submit(&self, task: impl FnOnce() + Send + 'static) {
        self.shared.unfinished.fetch_add(1, Ordering::SeqCst);
        // The receiver lives in `shared`.
        let _ = self.tasks.send(Box::new(task));
        if self.shared.may_start() && self.spawn(PoolShared::run_while_busy).is_err() {
            // No thread is to be had: those that are there do it, and the next task asks again.
            self.shared.threads.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn spawn(&self, body: fn(&PoolShared)) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name(self.name.to_owned()).spawn(move || body(&shared)).map(|_| ())
    }
}

impl PoolShared {
    /// Counts one more thread, if all are busy and there may be one.
    fn may_start(&self) -> bool {
        let more = |threads| {
            let is_wanted = threads < self.threads_max && self.unfinished.load(Ordering::SeqCst) > threads;
            is_wanted.then_some(threads + 1)
        };
        self.threads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    fn run_while_busy(&self) {
        loop {
            if let Ok(task) = self.queue.recv_timeout(IDLE_MAX) {
                self.run(task);
                continue;
            }
            self.threads.fetch_sub(1, Ordering::SeqCst);
            // A task that came meanwhile may have counted on this thread.
            if !self.may_start() {
                return;
            }
        }
    }

    /// The thread outlives a task that panics: others wait for it.
    fn run(&self, task: Task) {
        let guard = ThreadGuard::new(&self.health, &self.inbox);
        let _ = catch_unwind(AssertUnwindSafe(move || {
            let _guard = guard;
            task();
        }));
        self.unfinished.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Why a job came to nothing that panicked.
const PANICKED: &str = "the thread that was to do it has panicked; restart the forwarder, and report its log";
/// What is told of a device that was closed before its turn to be asked came; nobody listens any more.
const CLOSED: &str = "it was closed";
/// More would only wait for each other in the kernel, which makes interfaces under one lock.
const MAKERS_MAX: usize = 4;
/// No more jobs are begun at once ([`super::socket_jobs`]).
pub(super) const SOCKET_THREADS_MAX: usize = 64;
/// Of each of the four kinds. A device that hangs has one that makes or closes it, one that asks it, and two that tell it of
/// its link.
const DEVICE_THREADS_MAX: usize = 64;
/// The kernel takes 20 ms to take an interface away, and waits most of them: by `ip link delete` 1, 4, 16 and 64 at a time took 17, 8.5,
/// 3.7 and 2.1 ms for each (two cores, Linux 6.18).
const CLOSERS_MAX: usize = 32;
/// As many peers can hold one up before others wait behind them.
const REAPERS_MAX: usize = 64;
/// What the peers of one end, or of one listening socket, may have reapers drop. A peer that goes leaves two or three.
pub(super) const REAPED_MAX: usize = 64;
/// How long the end of control waits for its listening sockets to be closed.
const LAST_CLOSE_MAX: Duration = Duration::from_secs(1);
/// How long a thread waits for more before it ends.
const IDLE_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::super::health::Health;
    use super::*;
    use crate::spec::{EndSpec, MemifSpec, Role};
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    fn pool(threads_max: usize) -> Pool {
        let (inbox, _) = Inbox::new().unwrap();
        Pool::new("test", threads_max, &HealthCell::default(), &inbox).unwrap()
    }

    #[test]
    fn tasks_of_one_thread_run_in_their_order() {
        let pool = pool(1);
        let (done, order) = channel();
        for number in 0..1000 {
            let done = done.clone();
            pool.submit(move || done.send(number).unwrap());
        }
        assert!(order.iter().take(1000).eq(0..1000));
    }

    #[test]
    fn a_job_is_either_cancelled_or_begun() {
        let (first, second) = (Ticket::default(), Ticket::default());
        assert!(first.cancel() && !first.begin() && !first.cancel());
        assert!(second.begin() && !second.cancel());
    }

    #[test]
    fn a_task_that_is_stuck_holds_up_nobody_while_there_are_threads() {
        let pool = pool(8);
        let (free, stuck) = channel::<()>();
        let (done, finished) = channel();
        pool.submit(move || {
            let _ = stuck.recv();
        });
        for number in 0..100 {
            let done = done.clone();
            pool.submit(move || done.send(number).unwrap());
        }
        assert_eq!(finished.iter().take(100).count(), 100);
        drop(free);
    }

    #[test]
    fn a_task_has_a_thread_of_its_own_although_another_has_just_taken_one_that_is_stuck() {
        let pool = pool(8);
        let (free, stuck) = channel::<()>();
        let stuck = Arc::new(Mutex::new(stuck));
        let (done, finished) = channel();
        for number in 0..7 {
            let stuck = Arc::clone(&stuck);
            pool.submit(move || {
                let _ = stuck.lock().map(|stuck| stuck.recv());
            });
            let done = done.clone();
            pool.submit(move || done.send(number).unwrap());
            assert_eq!(finished.recv_timeout(Duration::from_secs(30)), Ok(number));
        }
        drop(free);
    }

    #[test]
    fn a_task_that_panics_is_told_and_costs_no_thread() {
        let (health, (inbox, messages)) = (HealthCell::default(), Inbox::new().unwrap());
        let pool = Pool::new("panicking", 1, &health, &inbox).unwrap();
        pool.submit(|| panic!("on purpose"));
        let (done, finished) = channel();
        pool.submit(move || done.send(()).unwrap());
        assert_eq!(finished.recv_timeout(Duration::from_secs(30)), Ok(()));
        assert_eq!(health.read(), Health::ThreadDied { thread: "panicking".to_owned() });
        assert!(matches!(messages.try_recv(), Ok(ControlMessage::Panicked(name)) if name == "panicking"));
    }

    #[test]
    fn whoever_waits_for_a_job_that_panics_is_told() {
        let (inbox, messages) = Inbox::new().unwrap();
        let jobs = Jobs::new(inbox, InterfaceOwner::process(), &HealthCell::default()).unwrap();
        let lost = || Done::Veth(WireKey::default(), Err(MakeError { end: 0, problem: PANICKED.to_owned() }));
        jobs.tell(&jobs.closers, lost(), || panic!("on purpose"));
        let _ticket = jobs.make(&jobs.makers, lost(), || panic!("on purpose"));
        let told = || messages.recv_timeout(Duration::from_secs(30)).unwrap();
        let told: Vec<_> = (0..4).map(|_| told()).collect();
        let is_lost = |message: &&ControlMessage| matches!(message, ControlMessage::Done(Done::Veth(_, Err(_))));
        assert_eq!(told.iter().filter(is_lost).count(), 2);
    }

    /// A device that hangs when it is asked or told anything, until its test lets go.
    struct Hung(Mutex<std::sync::mpsc::Receiver<()>>);

    impl Hung {
        fn hang(&self) {
            let _ = self.0.lock().map(|free| free.recv());
        }
    }

    impl Device for Hung {
        fn status(&self) -> Result<crate::port::device_status::DeviceStatus, String> {
            self.hang();
            Ok(crate::port::device_status::DeviceStatus::default())
        }

        fn set_link(&self, _up: bool) {
            self.hang();
        }
    }

    struct Refused;

    impl DeviceSpec for Refused {
        fn make(&self, _context: &DeviceContext) -> Result<MadeDevice, String> {
            Err("refused".to_owned())
        }

        fn is_made_by_kernel(&self) -> bool {
            false
        }

        fn comes_back(&self) -> bool {
            true
        }

        fn share(&self) -> Arc<dyn DeviceSpec> {
            Arc::new(Self)
        }
    }

    /// Answers at once.
    struct Healthy;

    impl Device for Healthy {
        fn status(&self) -> Result<crate::port::device_status::DeviceStatus, String> {
            Ok(crate::port::device_status::DeviceStatus::default())
        }
    }

    #[test]
    fn devices_that_hang_when_they_are_asked_or_told_hold_up_nobody_who_makes_or_closes_another() {
        let (inbox, messages) = Inbox::new().unwrap();
        let jobs = Jobs::new(inbox, InterfaceOwner::process(), &HealthCell::default()).unwrap();
        let end = EndId { wire: WireKey::default(), end: 0 };
        let mut free = Vec::new();
        let hung = (0..DEVICE_THREADS_MAX).map(|_| {
            let (sender, receiver) = channel();
            free.push(sender);
            Arc::new(Hung(Mutex::new(receiver))) as Arc<dyn Device>
        });
        let hung: Vec<_> = hung.collect();
        let links: Vec<_> = hung.iter().map(|device| Arc::new(DeviceLink::new(Arc::clone(device)))).collect();
        for (device, link) in hung.iter().zip(&links) {
            jobs.look_at_device(end, 0, device);
            jobs.set_link(link);
        }
        // All hang before the others come.
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while hung.iter().any(|device| Arc::strong_count(device) < 3) || links.iter().any(|l| Arc::strong_count(l) < 2)
        {
            assert!(std::time::Instant::now() < deadline, "not all of them were asked and told");
            thread::sleep(Duration::from_millis(1));
        }
        // A healthy one waits to be asked and told meanwhile, and is closed all the same.
        let healthy: Arc<dyn Device> = Arc::new(Healthy);
        let link = Arc::new(DeviceLink::new(Arc::clone(&healthy)));
        jobs.look_at_device(end, 2, &healthy);
        jobs.set_link(&link);
        drop(link);
        jobs.close_lost(end, 2, Vec::new(), healthy);
        let closed = messages.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(matches!(closed, ControlMessage::Done(Done::Device(_, 2, DeviceNews::Closed))));
        // And when those that hang are to be closed, others are made.
        drop(links);
        for device in hung {
            jobs.close_lost(end, 0, Vec::new(), device);
        }
        let memif = |end: &str| EndSpec::Memif(MemifSpec::new(SocketAddress::Abstract(end.to_owned()), Role::Server));
        let wire = WireSpec::new("wire", ["a", "b"].map(memif));
        let _ticket = jobs.make_device(end, 1, &wire, Arc::new(Refused));
        let made = messages.recv_timeout(Duration::from_secs(30)).unwrap();
        let refused = |made: &Result<NewDevice, String>| made.as_ref().err().is_some_and(|reason| reason == "refused");
        assert!(matches!(made, ControlMessage::Done(Done::Device(_, 1, DeviceNews::Made(made))) if refused(&made)));
    }
}
