//! A backend's conversation with its frontend, without I/O: requests and files in, replies and rings out.
//!
//! A frontend says things in any order and says them again while frames flow. So there is no chain of states but one
//! record of what was said: features, memory, and a vring_config of each ring. Whoever has the rings is asked to bring
//! them back ([`Session::park`]) before a request that [needs_quiesce](Request::needs_quiesce) them is handled, and gets new ones
//! ([`Session::rings`]) when the frontend has nothing more to say.
//!
//! - `requests`: what each request does;
//! - [`offer`]: what a frontend can choose from;
//! - [`table`]: the memory it announces; [`inflight`]: memory that it keeps for us.

pub mod inflight;
pub mod offer;
mod requests;
pub mod table;
mod vring_config;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferrule_ffi::peer_file::PeerFile;
use thiserror::Error;

use crate::port::any::{AnySource, AnyTarget, LaneEnd};
use crate::port::vhost_user::channel::{ChannelError, Envelope};
use crate::port::vhost_user::features::{Features, ProtocolFeatures};
use crate::port::vhost_user::log::DirtyLog;
use crate::port::vhost_user::memory::GuestMemory;
use crate::port::vhost_user::message::{Body, LogArea, MessageError, Reply, Request};
use crate::port::vhost_user::session::inflight::InflightMemory;
use crate::port::vhost_user::session::offer::Offer;
use crate::port::vhost_user::session::requests::Outcome;
use crate::port::vhost_user::session::table::{MemoryTable, TableError};
use crate::port::vhost_user::session::vring_config::VringConfig;
use crate::port::vhost_user::vring::{GuestRx, GuestTx, VringError, VringLog, VringSetup};

/// Everything that one frontend has said.
pub struct Session {
    offer: Offer,
    features: Features,
    /// None: nothing was chosen yet.
    protocol: Option<ProtocolFeatures>,
    memory: MemoryTable,
    vrings: Vec<VringConfig>,
    log: Option<DirtyLog>,
    inflight: Option<InflightMemory>,
    status: u8,
    /// Which vrings the rings are made from that are out now: sources, targets.
    out: [Vec<u32>; 2],
}

/// A request that was understood, with what came with it.
pub struct Message {
    /// The request.
    pub request: Request,
    need_reply: bool,
    files: Vec<PeerFile>,
}

/// What came of a request.
#[derive(Default)]
pub struct Answer {
    /// What to say to the frontend, with a file.
    pub reply: Option<(Reply, Option<OwnedFd>)>,
    /// A guest has moved here: the network is to learn this address.
    pub announce: Option<[u8; 6]>,
}

impl Session {
    /// A conversation with a frontend that has said nothing yet.
    pub fn new(offer: Offer) -> Self {
        let rings = 2 * usize::from(offer.queues);
        Self {
            offer,
            features: Features::default(),
            protocol: None,
            memory: MemoryTable::default(),
            vrings: std::iter::repeat_with(VringConfig::default).take(rings).collect(),
            log: None,
            inflight: None,
            status: 0,
            out: Default::default(),
        }
    }

    /// Handles one request. One that is refused changes nothing; without a wish for a reply, which would say so, it ends
    /// the conversation.
    pub fn handle(&mut self, message: Message) -> Result<Answer, SessionError> {
        let Message { request, need_reply, files } = message;
        let number = request.number();
        let reply = |body, file| Some((Reply { request: number, body }, file));
        match self.apply(request, files) {
            Ok(Outcome::Done { announce }) => {
                Ok(Answer { reply: need_reply.then(|| reply(Body::Value(0), None)).flatten(), announce })
            }
            Ok(Outcome::Reply(body, file)) => Ok(Answer { reply: reply(body, file), announce: None }),
            Err(error) if need_reply => {
                tracing::debug!(%error, "a vhost-user request is refused");
                Ok(Answer { reply: reply(Body::Value(1), None), announce: None })
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
            end.sources.push(AnySource::Vhost(GuestTx::new(tx)?).into());
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
                self.vrings[index as usize].set_base(ring.base());
            }
        }
        for (index, target) in targets.into_iter().zip(rings.targets) {
            if let AnyTarget::Vhost(ring) = target {
                self.vrings[index as usize].set_base(ring.base());
            }
        }
    }

    /// Whether memory of the guest went away.
    pub fn is_truncated(&self) -> bool {
        self.memory.health().is_dead()
    }

    /// The memory that its rings use.
    pub fn memory(&self) -> Option<&GuestMemory> {
        self.memory.memory()
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
        Some(VringSetup {
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
            log: log.map(|log| VringLog { dirty: log.clone(), used: address.log.then_some(address.log_guest) }),
            inflight: self.inflight.as_ref().and_then(|memory| memory.of_ring(index as usize)).cloned(),
            health: Arc::clone(self.memory.health()),
        })
    }
}

impl Message {
    /// Understands what was received.
    pub fn new(envelope: Envelope) -> Result<Self, SessionError> {
        let Envelope { header, payload, files } = envelope;
        if header.is_reply() {
            return Err(SessionError::NotAsked);
        }
        let request = Request::parse(header.request, &payload)?;
        Ok(Self { request, need_reply: header.needs_reply(), files })
    }
}

impl Request {
    /// Whether it may change what a worker uses, so that no worker may have the rings while it is handled.
    pub fn needs_quiesce(&self) -> bool {
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

/// Why a request is refused.
#[derive(Debug, Error)]
pub enum RequestError {
    /// It belongs to a feature that was not chosen.
    #[error("{request} without the protocol feature {feature}")]
    NotNegotiated {
        /// The request.
        request: &'static str,
        /// The feature.
        feature: &'static str,
    },
    /// Nothing that a net device has, or that we offer.
    #[error("{request}, which this backend has no use for")]
    Unsupported {
        /// The request.
        request: &'static str,
    },
    /// Too many descriptors, or too few.
    #[error("{count} descriptors came with {request}, which is not what belongs to it")]
    Files {
        /// The request.
        request: &'static str,
        /// How many.
        count: usize,
    },
    /// Features that were not offered.
    #[error("feature bits {bits:#x} were chosen and not offered")]
    Unoffered {
        /// Those.
        bits: u64,
    },
    /// Features change only while all rings are stopped, but for logging.
    #[error("feature bits {bits:#x} change while rings are started")]
    FeaturesInUse {
        /// Those.
        bits: u64,
    },
    /// No such ring.
    #[error("vring {index}: there are {rings}")]
    Index {
        /// What was asked for.
        index: u32,
        /// How many there are.
        rings: usize,
    },
    /// Its size and base stand while it is started.
    #[error("vring {index}: it is started; GET_VRING_BASE stops it")]
    Running {
        /// The ring.
        index: u32,
    },
    /// A pipe or whatever else.
    #[error("vring {index}: the descriptor is not an eventfd")]
    NotAnEventfd {
        /// The ring.
        index: u32,
    },
    /// A ring that cannot be.
    #[error(transparent)]
    Vring(#[from] VringError),
    /// Memory that does not do.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A log that does not do.
    #[error("log {} bytes from {:#x} on: {problem}", .area.size, .area.offset)]
    Log {
        /// Where it should be.
        area: LogArea,
        /// Why not.
        problem: String,
    },
    /// Memory for what is in flight that does not do.
    #[error("memory for what is in flight: {0}")]
    Inflight(String),
    /// An MTU that no link has.
    #[error("an MTU of {0} bytes; {MTU_MIN} to {MTU_MAX} are possible")]
    Mtu(u64),
    /// A status of more than 8 bits.
    #[error("device status {0:#x}")]
    Status(u64),
    /// Nothing in the configuration is the driver's to write.
    #[error("SET_CONFIG: the configuration of a net device is read-only")]
    ReadOnly,
}

/// Why a conversation ends.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Not a message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A request that was refused, and no reply was wanted that would say so.
    #[error("refused: {0}")]
    Request(#[from] RequestError),
    /// A ring that lies where it cannot.
    #[error(transparent)]
    Vring(#[from] VringError),
    /// Descriptors before anything else.
    #[error("descriptors came before the first message was whole")]
    FilesFirst,
    /// A reply to nothing.
    #[error("a reply came where a request was expected")]
    NotAsked,
}

/// The driver is ready (virtio 1.2, 2.1).
const STATUS_DRIVER_OK: u8 = 4;
/// The smallest MTU (virtio 1.2, 5.1.4.1).
const MTU_MIN: u64 = 68;
const MTU_MAX: u64 = 65_535;

#[cfg(test)]
mod tests;
