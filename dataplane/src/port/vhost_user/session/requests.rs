//! What each request does.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ferrule_ffi::peer_file::PeerFile;
use ferrule_ffi::region::Region;

use super::error::{MTU_MAX, MTU_MIN, RequestError};
use super::inflight::InflightMemory;
use super::table::SLOTS_MAX;
use super::vring_config::VringConfig;
use super::{Handled, Session};
use crate::port::vhost_user::features::{Features, ProtocolFeatures};
use crate::port::vhost_user::inflight;
use crate::port::vhost_user::log::DirtyLog;
use crate::port::vhost_user::message::{
    Config, Inflight, LogArea, ReplyBody, VhostUserRequest, VringAddress, VringFile, VringState,
};
use crate::port::vhost_user::vring::{SIZE_MAX, VringError};

impl Session {
    /// Does what a request asks for, or nothing of it.
    pub(super) fn apply(&mut self, request: VhostUserRequest, files: Vec<PeerFile>) -> Result<Handled, RequestError> {
        self.check(&request, files.len())?;
        let mut files = files.into_iter();
        match request {
            VhostUserRequest::GetFeatures => return Ok(Handled::value(self.offer.features.0)),
            VhostUserRequest::GetProtocolFeatures => return Ok(Handled::value(self.offer.protocol.0)),
            VhostUserRequest::GetQueueNum => return Ok(Handled::value(self.offer.queues.into())),
            VhostUserRequest::GetMaxMemSlots => return Ok(Handled::value(SLOTS_MAX as u64)),
            VhostUserRequest::GetStatus => return Ok(Handled::value(self.status.into())),
            VhostUserRequest::GetConfig(asked) => return Ok(self.config(asked)),
            VhostUserRequest::GetVringBase(VringState { index, .. }) => return self.stop(index),
            VhostUserRequest::GetInflightFd(asked) => return self.make_inflight(asked),
            VhostUserRequest::SendRarp(mac) => return Ok(Handled::Done { announce: Some(mac), exchange: None }),
            VhostUserRequest::SetLogBase(area) => {
                self.set_log(area, files.next())?;
                // Without a payload, as DPDK answers; the text leaves it open and QEMU looks at the number only.
                return Ok(Handled::Reply(ReplyBody::Empty, None));
            }
            VhostUserRequest::SetFeatures(chosen) => self.set_features(Features(chosen))?,
            VhostUserRequest::SetProtocolFeatures(chosen) => self.set_protocol(ProtocolFeatures(chosen))?,
            VhostUserRequest::SetMemTable(rows) => {
                self.memory.set(rows, files.collect())?;
                self.vrings.iter_mut().for_each(VringConfig::memory_changed);
            }
            VhostUserRequest::AddMemReg(row) => self.memory.add(row, the_file(files.next(), "ADD_MEM_REG")?)?,
            VhostUserRequest::RemMemReg(row) => {
                self.memory.remove(row)?;
                self.vrings.iter_mut().for_each(VringConfig::memory_changed);
            }
            VhostUserRequest::SetInflightFd(told) => {
                self.adopt_inflight(told, the_file(files.next(), "SET_INFLIGHT_FD")?)?;
            }
            VhostUserRequest::SetVringNum(VringState { index, num }) => self.set_size(index, num)?,
            VhostUserRequest::SetVringAddr(address) => self.set_address(address)?,
            VhostUserRequest::SetVringBase(VringState { index, num }) => self.stopped_vring(index)?.set_base(num),
            VhostUserRequest::SetVringEnable(VringState { index, num }) => self.vring_config(index)?.enabled = num != 0,
            VhostUserRequest::SetVringKick(ring) => {
                return self.set_kick(ring.index.into(), eventfd(ring, files.next())?);
            }
            VhostUserRequest::SetVringCall(ring) => {
                return self.set_call(ring.index.into(), eventfd(ring, files.next())?);
            }
            // A ring that breaks ends the connection, which says it better.
            VhostUserRequest::SetVringErr(ring) => {
                eventfd(ring, files.next())?;
                self.vring_config(ring.index.into())?;
            }
            VhostUserRequest::SetStatus(status) => self.set_status(status)?,
            VhostUserRequest::ResetOwner => {
                self.vrings.iter_mut().for_each(|vring_config| vring_config.enabled = false);
            }
            VhostUserRequest::ResetDevice => self.reset(),
            VhostUserRequest::NetSetMtu(mtu) if !(MTU_MIN..=MTU_MAX).contains(&mtu) => {
                return Err(RequestError::Mtu(mtu));
            }
            // Nothing is to be done: each connection has its one owner, the log is looked at by whoever wants to, and
            // frames of any length are carried.
            VhostUserRequest::SetOwner | VhostUserRequest::SetLogFd | VhostUserRequest::NetSetMtu(_) => {}
            VhostUserRequest::SetConfig(_) => return Err(RequestError::ReadOnly),
            VhostUserRequest::Other(_) => return Err(RequestError::Unsupported { request: request.word() }),
        }
        Ok(Handled::DONE)
    }

    /// Whether the request may be made, and has come with what belongs to it.
    fn check(&self, request: &VhostUserRequest, files: usize) -> Result<(), RequestError> {
        // DPDK's virtio-user speaks of its status before it has chosen anything, when it is the one that listens and we
        // come back: it remembers what it chose the last time.
        if let Some((feature, name)) = needs(request)
            && !self.protocol.unwrap_or(self.offer.protocol).has(feature)
        {
            return Err(RequestError::NotNegotiated { request: request.word(), feature: name });
        }
        check_files(request, files)
    }

    fn config(&self, asked: Config) -> Handled {
        let Config { offset, flags, data } = asked;
        let data = self.offer.config(offset, data.len()).unwrap_or_default();
        Handled::Reply(ReplyBody::Config(Config { offset, flags, data }), None)
    }

    /// Stops a ring, and says where it was left.
    fn stop(&mut self, index: u32) -> Result<Handled, RequestError> {
        let features = self.features;
        if let Some(block) = self.inflight.as_ref().and_then(|memory| memory.of_ring(index as usize)) {
            inflight::invalidate(block);
        }
        let vring_config = self.vring_config(index)?;
        vring_config.stop();
        Ok(Handled::Reply(ReplyBody::Vring(VringState { index, num: vring_config.base(features) }), None))
    }

    fn make_inflight(&mut self, asked: Inflight) -> Result<Handled, RequestError> {
        let (rings, health) = (self.vrings.len(), self.memory.health());
        let made = InflightMemory::create(asked, rings, self.features, health);
        let (memory, answer, region) = made.map_err(RequestError::Inflight)?;
        let file = Region::file(&region).try_clone_to_owned();
        let file = file.map_err(|error| RequestError::Inflight(error.to_string()))?;
        self.inflight = Some(Arc::new(memory));
        Ok(Handled::Reply(ReplyBody::Inflight(answer), Some(file)))
    }

    pub(crate) fn adopt_inflight(&mut self, told: Inflight, file: PeerFile) -> Result<(), RequestError> {
        let (rings, health) = (self.vrings.len(), self.memory.health());
        let adopted = InflightMemory::adopt(told, file, rings, self.features, health);
        self.inflight = Some(Arc::new(adopted.map_err(RequestError::Inflight)?));
        Ok(())
    }

    pub(crate) fn set_protocol(&mut self, chosen: ProtocolFeatures) -> Result<(), RequestError> {
        if !self.offer.protocol.has(chosen) {
            return Err(RequestError::Unoffered { bits: chosen.without(self.offer.protocol).0 });
        }
        self.protocol = Some(chosen);
        Ok(())
    }

    fn set_status(&mut self, status: u64) -> Result<(), RequestError> {
        self.status = u8::try_from(status).map_err(|_| RequestError::Status(status))?;
        if self.status == 0 {
            if let Some(memory) = &self.inflight {
                memory.blocks().for_each(inflight::invalidate);
            }
            self.vrings.iter_mut().for_each(VringConfig::reset);
        }
        Ok(())
    }

    pub(crate) fn set_features(&mut self, chosen: Features) -> Result<(), RequestError> {
        if !self.offer.features.has(chosen) {
            return Err(RequestError::Unoffered { bits: chosen.without(self.offer.features).0 });
        }
        let changed = Features(self.features.0 ^ chosen.0).without(Features::LOG_ALL);
        if changed != Features::default() && self.vrings.iter().any(VringConfig::is_started) {
            return Err(RequestError::FeaturesInUse { bits: changed.0 });
        }
        self.features = chosen;
        Ok(())
    }

    pub(crate) fn set_log(&mut self, area: LogArea, file: Option<PeerFile>) -> Result<(), RequestError> {
        let failed = |problem| RequestError::Log { area, problem };
        let file = the_file(file, "SET_LOG_BASE")?;
        if area.size > LOG_MAX {
            return Err(failed(format!("it has more than {LOG_MAX} bytes, and no more are mapped")));
        }
        // A window that wraps around or is not all in its file is refused there (CVE-2020-10722).
        let bitmap = Region::map_window(file, area.offset, area.size, self.memory.health());
        self.log = Some((area, DirtyLog::new(bitmap.map_err(|error| failed(error.to_string()))?)));
        Ok(())
    }

    fn set_size(&mut self, index: u32, size: u32) -> Result<(), RequestError> {
        if !(1..=SIZE_MAX).contains(&size) {
            return Err(VringError::Size { index, size }.into());
        }
        self.stopped_vring(index)?.size = Some(size);
        Ok(())
    }

    /// Also while the ring runs: that is how logging is switched on and off.
    fn set_address(&mut self, address: VringAddress) -> Result<(), RequestError> {
        self.vring_config(address.index)?.set_address(address);
        Ok(())
    }

    /// A ring, whose index is bounded before anything is done with it (CVE-2020-10723).
    pub(super) fn vring_config(&mut self, index: u32) -> Result<&mut VringConfig, RequestError> {
        let rings = self.vrings.len();
        self.vrings.get_mut(index as usize).ok_or(RequestError::Index { index, rings })
    }

    fn stopped_vring(&mut self, index: u32) -> Result<&mut VringConfig, RequestError> {
        let vring_config = self.vring_config(index)?;
        if vring_config.is_started() { Err(RequestError::Running { index }) } else { Ok(vring_config) }
    }

    /// Back to the beginning, but for the memory and the protocol features, which are the frontend's.
    fn reset(&mut self) {
        self.vrings.iter_mut().for_each(|vring_config| *vring_config = VringConfig::default());
        self.features = Features::default();
        self.log = None;
        self.inflight = None;
        self.status = 0;
    }
}

/// Which protocol feature a request belongs to.
fn needs(request: &VhostUserRequest) -> Option<(ProtocolFeatures, &'static str)> {
    Some(match request {
        VhostUserRequest::SetLogBase(_) => (ProtocolFeatures::LOG_SHMFD, "LOG_SHMFD"),
        VhostUserRequest::GetQueueNum => (ProtocolFeatures::MQ, "MQ"),
        VhostUserRequest::SendRarp(_) => (ProtocolFeatures::RARP, "RARP"),
        VhostUserRequest::NetSetMtu(_) => (ProtocolFeatures::NET_MTU, "NET_MTU"),
        VhostUserRequest::GetConfig(_) | VhostUserRequest::SetConfig(_) => (ProtocolFeatures::CONFIG, "CONFIG"),
        VhostUserRequest::GetInflightFd(_) | VhostUserRequest::SetInflightFd(_) => {
            (ProtocolFeatures::INFLIGHT_SHMFD, "INFLIGHT_SHMFD")
        }
        VhostUserRequest::ResetDevice => (ProtocolFeatures::RESET_DEVICE, "RESET_DEVICE"),
        VhostUserRequest::GetMaxMemSlots | VhostUserRequest::AddMemReg(_) | VhostUserRequest::RemMemReg(_) => {
            (ProtocolFeatures::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS")
        }
        VhostUserRequest::SetStatus(_) | VhostUserRequest::GetStatus => (ProtocolFeatures::STATUS, "STATUS"),
        _ => return None,
    })
}

/// As many files as the request has, no more and no fewer (CVE-2019-14818, CVE-2022-0669). What came beside is closed.
fn check_files(request: &VhostUserRequest, count: usize) -> Result<(), RequestError> {
    let right = match request {
        VhostUserRequest::SetMemTable(rows) => count == rows.len(),
        VhostUserRequest::SetLogBase(_)
        | VhostUserRequest::SetLogFd
        | VhostUserRequest::SetInflightFd(_)
        | VhostUserRequest::AddMemReg(_) => count == 1,
        VhostUserRequest::SetVringKick(ring)
        | VhostUserRequest::SetVringCall(ring)
        | VhostUserRequest::SetVringErr(ring) => count == usize::from(ring.has_file),
        // Some frontends pass it once more.
        VhostUserRequest::RemMemReg(_) => count <= 1,
        _ => count == 0,
    };
    if right { Ok(()) } else { Err(RequestError::Files { request: request.word(), count }) }
}

/// The eventfd of a ring, if it says that there is one.
fn eventfd(ring: VringFile, file: Option<PeerFile>) -> Result<Option<OwnedFd>, RequestError> {
    let Some(file) = file else { return Ok(None) };
    file.into_eventfd().map(Some).ok_or(RequestError::NotAnEventfd { index: ring.index.into() })
}

/// The file that came with a request which has one.
fn the_file(file: Option<PeerFile>, request: &'static str) -> Result<PeerFile, RequestError> {
    file.ok_or(RequestError::Files { request, count: 0 })
}

/// Bytes of a dirty log: enough for 32 TiB of guest addresses.
const LOG_MAX: u64 = 1 << 30;
