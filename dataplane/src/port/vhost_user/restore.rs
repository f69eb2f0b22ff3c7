//! A frontend written down for a successor process, and taken up there.
//!
//! It is written down while no worker has its rings: their positions are in the session by then, a frame that was cut on
//! its way included. The frontend notices nothing: its socket stays open, what it has said half is remembered, and a
//! request that waited is handled by the successor.

use std::io;
use std::time::{Duration, Instant};

use ferrule_ffi::peer_file::PeerFile;
use serde::{Deserialize, Serialize};

use crate::port::saved::{FileId, RestoreError, SavedFiles};
use crate::port::vhost_user::channel::VhostUserChannel;
use crate::port::vhost_user::features::{Features, ProtocolFeatures};
use crate::port::vhost_user::memory::MemoryRegion;
use crate::port::vhost_user::message::{HEADER_LEN, Header, Inflight, LogArea};
use crate::port::vhost_user::peer::VhostUserPeer;
use crate::port::vhost_user::session::error::RequestError;
use crate::port::vhost_user::session::vring_config::SavedVring;
use crate::port::vhost_user::session::{Session, VhostUserMessage};

/// A frontend as it is written down. Descriptors are named, and passed beside it.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedVhostUserPeer {
    socket: FileId,
    /// What has come of the next message.
    half: SavedMessage,
    /// The request that waits for lanes.
    held: Option<SavedMessage>,
    session: SavedSession,
    /// How much longer it may say nothing.
    silence_left: Option<Duration>,
}

/// A frontend that is not the peer of an end yet: it has said nothing whole, or waits for its turn.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedPendingFrontend {
    socket: FileId,
    half: SavedMessage,
    first: Option<SavedMessage>,
}

impl SavedPendingFrontend {
    /// Writes it down, with the first message that it has said if that is whole. Descriptors are copied.
    ///
    /// # Errors
    /// There are no more descriptors to be had.
    pub fn save(
        channel: &VhostUserChannel,
        first: Option<&VhostUserMessage>,
        files: &mut SavedFiles,
    ) -> io::Result<Self> {
        let half = channel.half_message();
        Ok(Self {
            socket: files.push_copy(channel)?,
            half: SavedMessage::new(&half.bytes, half.files, files)?,
            first: first.map(|first| SavedMessage::new(&first.emit(), first.files(), files)).transpose()?,
        })
    }

    /// Takes it up: its socket, and what it said first.
    ///
    /// # Errors
    /// A descriptor is missing or is not what was saved.
    pub fn restore(self, files: &mut SavedFiles) -> Result<(VhostUserChannel, Option<VhostUserMessage>), RestoreError> {
        let channel = self.half.restore_channel(self.socket, files)?;
        Ok((channel, self.first.map(|first| first.restore_message(files)).transpose()?))
    }
}

/// Bytes of a message and what came with them.
#[derive(Debug, Default, Serialize, Deserialize)]
struct SavedMessage {
    bytes: Vec<u8>,
    files: Vec<FileId>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedSession {
    features: u64,
    protocol: Option<u64>,
    status: u8,
    memory: Vec<(MemoryRegion, FileId)>,
    vrings: Vec<SavedVring>,
    log: Option<(LogArea, FileId)>,
    inflight: Option<(Inflight, FileId)>,
}

impl VhostUserPeer {
    /// Writes it down. Descriptors are copied: it can go on here if nobody takes it up.
    ///
    /// # Errors
    /// A worker has its rings, or there are no more descriptors to be had.
    pub fn save(&self, files: &mut SavedFiles, now: Instant) -> io::Result<SavedVhostUserPeer> {
        let half = self.channel.half_message();
        let held = self.held.as_ref().map(|held| SavedMessage::new(&held.emit(), held.files(), files));
        Ok(SavedVhostUserPeer {
            socket: files.push_copy(&self.channel)?,
            half: SavedMessage::new(&half.bytes, half.files, files)?,
            held: held.transpose()?,
            session: SavedSession::new(&self.session, files)?,
            silence_left: self.silent_until.map(|until| until.saturating_duration_since(now)),
        })
    }

    /// Lets go of a frontend that a successor has taken up: it does not notice. (Dropped, it would see its socket closed.)
    pub fn release(self) {
        self.channel.release();
    }
}

impl SavedVhostUserPeer {
    /// Takes the frontend up with a session that offers what its predecessor offered, and in which nothing was said yet.
    pub fn restore(
        self,
        session: Session,
        files: &mut SavedFiles,
        now: Instant,
    ) -> Result<VhostUserPeer, RestoreError> {
        let channel = self.half.restore_channel(self.socket, files)?;
        let held = self.held.map(|held| held.restore_message(files));
        Ok(VhostUserPeer {
            channel,
            session: self.session.restore(session, files)?,
            held: held.transpose()?,
            silent_until: self.silence_left.map(|left| now + left),
        })
    }
}

impl SavedMessage {
    fn new(bytes: &[u8], peer_files: &[PeerFile], files: &mut SavedFiles) -> io::Result<Self> {
        let files = peer_files.iter().map(|file| files.push_copy(file)).collect::<io::Result<_>>()?;
        Ok(Self { bytes: bytes.to_vec(), files })
    }

    fn restore(self, files: &mut SavedFiles) -> Result<(Vec<u8>, Vec<PeerFile>), RestoreError> {
        let taken = self.files.into_iter().map(|id| files.take(id).map(PeerFile::from));
        Ok((self.bytes, taken.collect::<Result<_, _>>()?))
    }

    /// The socket on which this has come.
    fn restore_channel(self, socket: FileId, files: &mut SavedFiles) -> Result<VhostUserChannel, RestoreError> {
        let socket = files.take(socket)?;
        let (bytes, half) = self.restore(files)?;
        let channel = VhostUserChannel::restore(socket, &bytes, half);
        channel.map_err(|source| RestoreError::File { what: "a control socket", source })
    }

    /// The message, which is whole.
    fn restore_message(self, files: &mut SavedFiles) -> Result<VhostUserMessage, RestoreError> {
        let (bytes, files) = self.restore(files)?;
        let (header, payload) = bytes.split_first_chunk::<HEADER_LEN>().ok_or_else(|| invalid("half a request"))?;
        VhostUserMessage::parse(&Header::parse(header).map_err(invalid)?, payload, files).map_err(invalid)
    }
}

impl SavedSession {
    fn new(session: &Session, files: &mut SavedFiles) -> io::Result<Self> {
        if session.has_rings_out() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "a worker has the rings of this frontend"));
        }
        let memory = session.memory.regions().map(|(announced, file)| Ok((*announced, files.push_copy(file)?)));
        let memory = memory.collect::<io::Result<_>>()?;
        let log = session.log.as_ref().map(|(area, log)| files.push_copy(log.file()).map(|id| (*area, id)));
        let inflight = session.inflight.as_ref();
        let inflight = inflight.map(|memory| files.push_copy(memory.file()).map(|id| (memory.description(), id)));
        Ok(Self {
            features: session.features.0,
            protocol: session.protocol.map(|protocol| protocol.0),
            status: session.status,
            memory,
            vrings: session.vrings.iter().map(|vring| vring.save(files)).collect::<io::Result<_>>()?,
            log: log.transpose()?,
            inflight: inflight.transpose()?,
        })
    }

    /// Everything is checked once more, as if the frontend had said it now.
    fn restore(self, mut session: Session, files: &mut SavedFiles) -> Result<Session, RestoreError> {
        let refused = |error: RequestError| invalid(error);
        session.set_features(Features(self.features)).map_err(refused)?;
        if let Some(protocol) = self.protocol {
            session.set_protocol(ProtocolFeatures(protocol)).map_err(refused)?;
        }
        session.status = self.status;
        if !self.memory.is_empty() {
            let (regions, ids): (Vec<_>, Vec<_>) = self.memory.into_iter().unzip();
            let memory = ids.into_iter().map(|id| files.take(id).map(PeerFile::from)).collect::<Result<_, _>>()?;
            session.memory.set(regions, memory).map_err(invalid)?;
        }
        if let Some((area, id)) = self.log {
            session.set_log(area, Some(files.take(id)?.into())).map_err(refused)?;
        }
        if let Some((description, id)) = self.inflight {
            session.adopt_inflight(description, files.take(id)?.into()).map_err(refused)?;
        }
        if self.vrings.len() != session.vrings.len() {
            let (then, now) = (self.vrings.len(), session.vrings.len());
            return Err(invalid(format!("a device of {then} vrings, where there are {now} now")));
        }
        for (vring, saved) in session.vrings.iter_mut().zip(self.vrings) {
            vring.restore(&saved, files)?;
        }
        Ok(session)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "errors come so from what failed")]
fn invalid(problem: impl ToString) -> RestoreError {
    RestoreError::Invalid(problem.to_string())
}
