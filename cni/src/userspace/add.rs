//! ADD: a seat at a wire, the wire, and what the pod finds of it.

use super::SocketConfig;
use super::del::{forget, settle_owed};
use super::files::{make_link, socket_file, socket_path, write_config};
use super::seats::{KIND, SeatRecord, SocketAttachment, free_seat, wire};
use crate::call::Call;
use crate::device_info::DeviceInfo;
use crate::forwarder::Forwarder;
use crate::ipam::Ipam;
use crate::protocol::{AddResult, Attachment, CniError, Command, Interface};
use crate::store::{self, Store};

/// Attaches a container to a network of sockets.
pub fn add(call: &Call<'_>, attachment: &Attachment) -> Result<AddResult, CniError> {
    let config = SocketConfig::read(call.network)?;
    let file = socket_file(&config, attachment);
    add_socket(call, attachment, &config, &file).map_err(|error| error.about(&format!("socket {file}")))
}

fn add_socket(
    call: &Call<'_>,
    attachment: &Attachment,
    config: &SocketConfig,
    file: &str,
) -> Result<AddResult, CniError> {
    let store = Store::open(&call.network.places.state, KIND)?;
    let _lock = store.lock(&format!("network-{}", call.network.name))?;
    settle_owed(call, &store)?;
    if let Some(earlier) = store.find::<SeatRecord>(attachment)? {
        forget(call, &store, &earlier)?;
    }
    let ipam = Ipam::of(call.environment, call.network);
    let addresses = ipam.map(Ipam::add).transpose()?.unwrap_or_default();
    call.step("there are addresses");
    let taken = store.all::<SeatRecord>()?.into_iter().filter(|record| record.network == call.network.name);
    let taken: Vec<_> = taken.collect();
    let what = SeatRecord::new(config, free_seat(&taken, &attachment.container), file.to_owned());
    let boot = store::boot(&call.network.places.root);
    let record = SocketAttachment::new(call.network, attachment, boot, what);
    let failure = match attach(call, &store, &record, &taken, config, &addresses) {
        Ok(interface) => return Ok(call.network.with_previous(interface, addresses)),
        Err(failure) => failure,
    };
    let made = store.find::<SeatRecord>(attachment)?;
    let left = made.map(|record| forget(call, &store, &record)).transpose().err();
    let left = left.or(ipam.map(|ipam| ipam.order(Command::Del)).transpose().err());
    Err(failure.and_then_left(left))
}

fn attach(
    call: &Call<'_>,
    store: &Store,
    record: &SocketAttachment,
    taken: &[SocketAttachment],
    config: &SocketConfig,
    addresses: &AddResult,
) -> Result<Interface, CniError> {
    let mut forwarder = Forwarder::connect(&call.network.places.forwarder)?;
    store.write(record)?;
    call.step("the seat is recorded");
    // The directory of the ends is made with it, before the forwarder listens there.
    make_link(record)?;
    call.step("the pod's link is there");
    forwarder.put(wire(record, taken))?;
    call.step("the wire is there");
    write_config(record, config, addresses)?;
    call.step("the pod is told of its socket");
    let path = socket_path(record).to_string_lossy().into_owned();
    if let Some(file) = call.network.device_info()? {
        DeviceInfo::Socket { kind: config.kind, forwarder_listens: config.forwarder_listens, path: path.clone() }
            .write(&file)?;
    }
    Ok(Interface { name: record.interface.clone(), socket: path, ..Interface::default() })
}
