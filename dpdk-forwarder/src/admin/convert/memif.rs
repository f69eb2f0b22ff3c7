//! A memif end as a message.

use ferrule_dataplane::spec::{ByteSize, MemifSpec, Mode, Prealloc, Secret};

use super::reader::{Reader, access_to_proto, netns_to_proto, role_to_proto};
use super::secrets::Secrets;
use dpdk_forwarder_client::v1;

pub(super) fn from_proto(reader: &mut Reader, memif: &v1::MemifEnd) -> Option<MemifSpec> {
    let socket = reader.parse("memif.socket", &memif.socket);
    let role = reader.role("memif.role", memif.role);
    let netns = memif.netns.as_ref().and_then(|netns| reader.netns("memif.netns", netns));
    let mode = match v1::FrameMode::try_from(memif.mode) {
        Ok(v1::FrameMode::Unspecified | v1::FrameMode::Ethernet) => Mode::Ethernet,
        Ok(v1::FrameMode::Ip) => Mode::Ip,
        Err(_) => reader.unknown("memif.mode", memif.mode, Mode::Ethernet),
    };
    let secret = reader.optional::<Secret>("memif.secret", &memif.secret);
    let access = reader.access("memif", memif.access.as_ref());
    let prealloc = match v1::Prealloc::try_from(memif.prealloc) {
        Ok(v1::Prealloc::Unspecified | v1::Prealloc::Never) => Prealloc::Never,
        Ok(v1::Prealloc::SmallPages) => Prealloc::SmallPages,
        Ok(v1::Prealloc::HugePages) => Prealloc::HugePages,
        Err(_) => reader.unknown("memif.prealloc", memif.prealloc, Prealloc::Never),
    };
    let defaults = MemifSpec::new(socket?, role?);
    Some(MemifSpec {
        netns,
        id: memif.id,
        mode,
        secret,
        // Out of range for the type is out of range for the wire: the check says it best.
        queues: memif.queues.map_or(defaults.queues, |queues| u16::try_from(queues).unwrap_or(u16::MAX)),
        ring: memif.ring.unwrap_or(defaults.ring),
        buffer: memif.buffer.unwrap_or(defaults.buffer),
        prealloc,
        access,
        memory: memif.memory_bytes.map_or(defaults.memory, ByteSize::bytes),
        ..defaults
    })
}

pub(super) fn to_proto(memif: &MemifSpec, secrets: Secrets) -> v1::MemifEnd {
    let mode = match memif.mode {
        Mode::Ethernet => v1::FrameMode::Ethernet,
        Mode::Ip => v1::FrameMode::Ip,
    };
    let prealloc = match memif.prealloc {
        Prealloc::Never => v1::Prealloc::Never,
        Prealloc::SmallPages => v1::Prealloc::SmallPages,
        Prealloc::HugePages => v1::Prealloc::HugePages,
    };
    let secret = memif.secret.as_ref().filter(|_| secrets == Secrets::Shown);
    v1::MemifEnd {
        socket: memif.socket.to_string(),
        netns: memif.netns.as_ref().map(netns_to_proto),
        id: memif.id,
        role: role_to_proto(memif.role).into(),
        mode: mode.into(),
        secret: secret.map(|secret| secret.text().into_owned()).unwrap_or_default(),
        queues: Some(memif.queues.into()),
        ring: Some(memif.ring),
        buffer: Some(memif.buffer),
        access: access_to_proto(&memif.access),
        memory_bytes: Some(memif.memory.as_bytes()),
        prealloc: prealloc.into(),
    }
}
