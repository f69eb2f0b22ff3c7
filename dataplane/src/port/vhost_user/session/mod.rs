//! A backend's conversation with its frontend, without I/O: requests and files in, replies and rings out.
//!
//! A frontend says things in any order and says them again while frames flow. So there is no chain of states but one
//! record of what was said: features, memory, and a vring_config of each ring. Whoever has the rings is asked to bring
//! them back ([`Session::park`]) before a request that [needs them quiesced](Session::needs_quiesce) is handled, and gets new ones
//! ([`Session::rings`]) when the frontend has nothing more to say.
//!
//! - `requests`: what each request does; `eventfds`: those that are exchanged while workers have the rings;
//! - [`offer`]: what a frontend can choose from;
//! - [`error`]: why a request is refused, and why a conversation ends;
//! - [`table`]: the memory it announces; [`inflight`]: memory that it keeps for us.

pub mod error;
mod eventfds;
pub mod inflight;
pub mod offer;
mod requests;
pub mod table;
pub(crate) mod vring_config;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferrule_ffi::health::{Health, MemoryLost};
use ferrule_ffi::memory_budget::MemoryBudget;
use ferrule_ffi::peer_file::PeerFile;

use crate::port::any::{AnySource, AnyTarget, LaneEnd, LaneSource};
use crate::port::vhost_user::channel::RawMessage;
use crate::port::vhost_user::eventfd::EventfdExchange;
use crate::port::vhost_user::features::{Features, ProtocolFeatures};
use crate::port::vhost_user::log::DirtyLog;
use crate::port::vhost_user::memory::GuestMemory;
use crate::port::vhost_user::message::{Header, LogArea, ReplyBody, VhostUserReply, VhostUserRequest};
use crate::port::vhost_user::session::error::SessionError;
use crate::port::vhost_user::session::inflight::InflightMemory;
use crate::port::vhost_user::session::offer::VhostUserOffer;
use crate::port::vhost_user::session::table::MemoryTable;
use crate::port::vhost_user::session::vring_config::VringConfig;
use crate::port::vhost_user::virtqueue::{GuestRx, GuestTx};
use crate::port::vhost_user::vring::{VringError, VringLog, VringSetup};

/// Everything that one frontend has said.
pub struct Session {
    offer: VhostUserOffer,
    pub(crate) features: Features,
    /// None: nothing was chosen yet.
    pub(crate) protocol: Option<ProtocolFeatures>,
    pub(crate) memory: MemoryTable,
    pub(crate) vrings: Vec<VringConfig>,
    pub(crate) log: Option<(LogArea, DirtyLog)>,
    pub(crate) inflight: Option<Arc<InflightMemory>>,
    pub(crate) status: u8,
    /// Which vrings the rings are made from that are out now: sources, targets.
    out: [Vec<u32>; 2],
    /// Eventfds that were replaced in rings which are out, until no worker has them any more.
    retired: Vec<Arc<OwnedFd>>,
}

/// Memory of a frontend: its table, its dirty log, and what it keeps for us. It stays mapped as long as this is there.
pub struct MappedMemory {
    table: Option<GuestMemory>,
    log: Option<DirtyLog>,
    inflight: Option<Arc<InflightMemory>>,
}

impl MappedMemory {
    /// Whether nothing of it was replaced.
    pub fn is_same(&self, other: &Self) -> bool {
        fn same<T>(a: Option<&T>, b: Option<&T>, is_same: fn(&T, &T) -> bool) -> bool {
            match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => is_same(a, b),
                (None, Some(_)) | (Some(_), None) => false,
            }
        }
        same(self.table.as_ref(), other.table.as_ref(), GuestMemory::is_same)
            && same(self.log.as_ref(), other.log.as_ref(), DirtyLog::is_same)
            && same(self.inflight.as_ref(), other.inflight.as_ref(), Arc::ptr_eq)
    }
}

/// A request that was understood, with what came with it.
pub struct VhostUserMessage {
    /// The request.
    pub request: VhostUserRequest,
    need_reply: bool,
    files: Vec<PeerFile>,
}

/// What came of a request.
#[derive(Default)]
pub struct Response {
    /// What to say to the frontend, with a file.
    pub reply: Option<(VhostUserReply, Option<OwnedFd>)>,
    /// A worker is to notify, or to be notified, by another eventfd.
    pub exchange: Option<EventfdExchange>,
    /// A guest has moved here: the network is to learn this address.
    pub announce: Option<[u8; 6]>,
}

/// What a request that was accepted leads to.
enum Handled {
    /// It has no answer but that it was done, if that is wanted.
    Done {
        announce: Option<[u8; 6]>,
        exchange: Option<EventfdExchange>,
    },
    Reply(ReplyBody, Option<OwnedFd>),
}

impl Handled {
    const DONE: Self = Self::Done { announce: None, exchange: None };

    fn value(value: u64) -> Self {
        Self::Reply(ReplyBody::Value(value), None)
    }
}

impl Session {
    /// A conversation with a frontend that has said nothing yet. What we populate of its memory is charged to `budget`.
    pub fn new(offer: VhostUserOffer, budget: &Arc<MemoryBudget>) -> Self {
        let rings = 2 * usize::from(offer.queues);
        Self {
            offer,
            features: Features::default(),
            protocol: None,
            memory: MemoryTable::new(Health::within(budget)),
            vrings: std::iter::repeat_with(VringConfig::default).take(rings).collect(),
            log: None,
            inflight: None,
            status: 0,
            out: Default::default(),
            retired: Vec::new(),
        }
    }

    /// Handles one request. One that is refused changes nothing; without a wish for a reply, which would say so, it ends
    /// the conversation.
    pub fn handle(&mut self, message: VhostUserMessage) -> Result<Response, SessionError> {
        let VhostUserMessage { request, need_reply, files } = message;
        let number = request.number();
        let reply = |body, file| Some((VhostUserReply { request: number, body }, file));
        match self.apply(request, files) {
            Ok(Handled::Done { announce, exchange }) => {
                let reply = need_reply.then(|| reply(ReplyBody::Value(0), None)).flatten();
                Ok(Response { reply, exchange, announce })
            }
            Ok(Handled::Reply(body, file)) => Ok(Response { reply: reply(body, file), ..Response::default() }),
            Err(error) if need_reply => {
                tracing::debug!(%error, "a vhost-user request is refused");
                Ok(Response { reply: reply(ReplyBody::Value(1), None), ..Response::default() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// New ends of all rings that are complete, in pairs; none: there is no such pair.
    pub fn rings(&mut self) -> Result<Option<LaneEnd>, VringError> {
        let told = self.protocol.is_some_and(|protocol| protocol.has(ProtocolFeatures::STATUS));
        let ready = !told || self.status & STATUS_DRIVER_OK != 0;
        let setups: Vec<_> = (0..self.vrings.len() as u32).map(|index| self.setup(index)).collect();
        let mut pairs: Vec<_> =
            setups.chunks_exact(2).filter_map(|pair| pair[0].as_ref().zip(pair[1].as_ref())).collect();
        if !ready || pairs.is_empty() {
            return Ok(None);
        }
        // Lanes are made of the rings that carry frames; the others join them to be drained.
        pairs.sort_by_key(|(_, tx)| !tx.enabled);
        let mut end = LaneEnd::default();
        self.out = Default::default();
        for (rx, tx) in pairs {
            let segments = self.vrings[tx.index as usize].segments();
            end.sources.push(LaneSource { source: AnySource::Vhost(GuestTx::new(tx)?), resume: segments });
            self.out[0].push(tx.index);
            // Whoever sent frames to a ring that is not enabled would wait for it.
            if rx.enabled {
                end.targets.push(AnyTarget::Vhost(GuestRx::new(rx)?));
                self.out[1].push(rx.index);
            }
        }
        Ok(Some(end))
    }

    /// Takes the rings back that it gave out, and notes where each was left.
    pub fn park(&mut self, rings: LaneEnd) {
        let [sources, targets] = std::mem::take(&mut self.out);
        for (index, source) in sources.into_iter().zip(rings.sources) {
            if let AnySource::Vhost(ring) = source.source {
                self.vrings[index as usize].left_at(ring.base(), source.resume);
            }
        }
        for (index, target) in targets.into_iter().zip(rings.targets) {
            if let AnyTarget::Vhost(ring) = target {
                self.vrings[index as usize].left_at(ring.base(), 0);
            }
        }
    }

    /// Whether a worker may have rings of it.
    pub(crate) fn has_rings_out(&self) -> bool {
        self.out.iter().any(|rings| !rings.is_empty())
    }

    /// Why memory of the guest cannot be used any more, if so.
    pub fn memory_lost(&self) -> Option<MemoryLost> {
        self.memory.health().cause()
    }

    /// The memory that its rings use.
    pub fn memory(&self) -> Option<&GuestMemory> {
        self.memory.memory()
    }

    /// All memory of the frontend that we have mapped.
    pub fn mapped(&self) -> MappedMemory {
        MappedMemory {
            table: self.memory().cloned(),
            log: self.log.as_ref().map(|(_, log)| log.clone()),
            inflight: self.inflight.clone(),
        }
    }

    /// How many queue pairs carry frames while rings are out.
    pub fn pairs(&self) -> usize {
        self.out[1].len()
    }

    /// All that is known of a ring, if it is complete.
    fn setup(&self, index: u32) -> Option<VringSetup> {
        let vring_config = &self.vrings[index as usize];
        let (address, size, kick) = vring_config.complete()?;
        let log = self.log.as_ref().filter(|_| self.features.has(Features::LOG_ALL));
        let setup = VringSetup {
            index,
            size,
            desc: address.desc,
            avail: address.avail,
            used: address.used,
            base: vring_config.base(self.features),
            // Without protocol features there is nothing to enable a ring by.
            enabled: vring_config.enabled || !self.features.has(Features::PROTOCOL_FEATURES),
            features: self.features,
            kick,
            call: vring_config.call.clone(),
            memory: self.memory.memory()?.clone(),
            log: log.map(|(_, log)| VringLog { dirty: log.clone(), used: address.log.then_some(address.log_guest) }),
            inflight: self.inflight.as_ref().and_then(|memory| memory.of_ring(index as usize)).cloned(),
            health: Arc::clone(self.memory.health()),
        };
        if vring_config.is_moving() && setup.areas().is_err() {
            tracing::debug!(vring = index, "its memory has gone, and it waits for SET_VRING_ADDR");
            return None;
        }
        Some(setup)
    }
}

impl VhostUserMessage {
    /// Understands what was received.
    pub fn new(envelope: RawMessage) -> Result<Self, SessionError> {
        let RawMessage { header, payload, files } = envelope;
        Self::parse(&header, &payload, files)
    }

    /// Understands a message in its parts.
    pub(crate) fn parse(header: &Header, payload: &[u8], files: Vec<PeerFile>) -> Result<Self, SessionError> {
        if header.is_reply() {
            return Err(SessionError::NotAsked);
        }
        let request = VhostUserRequest::parse(header.request, payload)?;
        Ok(Self { request, need_reply: header.needs_reply(), files })
    }

    /// The message as it came over the socket.
    pub(crate) fn emit(&self) -> Vec<u8> {
        self.request.emit(self.need_reply)
    }

    /// What came with it.
    pub(crate) fn files(&self) -> &[PeerFile] {
        &self.files
    }
}

impl VhostUserRequest {
    /// Whether it brings a ring another eventfd.
    pub fn names_eventfd(&self) -> bool {
        matches!(self, Self::SetVringKick(_) | Self::SetVringCall(_))
    }

    /// Whether it may change what a worker uses, whatever is known of the rings.
    fn needs_quiesce(&self) -> bool {
        match self {
            Self::SetFeatures(_)
            | Self::ResetOwner
            | Self::SetMemTable(_)
            | Self::SetLogBase(_)
            | Self::SetVringNum(_)
            | Self::SetVringAddr(_)
            | Self::SetVringBase(_)
            | Self::GetVringBase(_)
            | Self::SetVringKick(_)
            | Self::SetVringCall(_)
            | Self::SetVringEnable(_)
            | Self::SendRarp(_)
            | Self::GetInflightFd(_)
            | Self::SetInflightFd(_)
            | Self::ResetDevice
            | Self::AddMemReg(_)
            | Self::RemMemReg(_)
            | Self::SetStatus(_) => true,
            Self::GetFeatures
            | Self::SetOwner
            | Self::SetLogFd
            | Self::SetVringErr(_)
            | Self::GetProtocolFeatures
            | Self::SetProtocolFeatures(_)
            | Self::GetQueueNum
            | Self::NetSetMtu(_)
            | Self::GetConfig(_)
            | Self::SetConfig(_)
            | Self::GetMaxMemSlots
            | Self::GetStatus
            | Self::Other(_) => false,
        }
    }
}

/// The driver is ready (virtio 1.2, 2.1).
const STATUS_DRIVER_OK: u8 = 4;
#[cfg(test)]
mod tests;
