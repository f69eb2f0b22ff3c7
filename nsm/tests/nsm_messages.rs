//! The messages are those of Network Service Mesh: by every field's number, and by what real programs sent.

use std::collections::BTreeSet;
use std::error::Error;

use ferrule_nsm::proto::connection::{Connection, State};
use ferrule_nsm::proto::networkservice::NetworkServiceRequest;
use ferrule_nsm::proto::registry::NetworkServiceEndpoint;
use ferrule_nsm::proto::{DESCRIPTORS, workload};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, SerializeOptions};
use serde_json::Value;

#[test]
fn fields_and_calls_are_those_of_the_protocol() {
    let expected: BTreeSet<String> =
        include_str!("data/fields.txt").lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    let pool = pool();
    let mut found = BTreeSet::new();
    for message in pool.all_messages().filter(|message| message.package_name() != "google.protobuf") {
        if !message.is_map_entry() {
            let line = |field: FieldDescriptor| {
                format!("{} {} {} {}", message.full_name(), field.name(), field.number(), kind(&field))
            };
            found.extend(message.fields().map(line));
        }
    }
    for set in pool.all_enums() {
        found
            .extend(set.values().map(|value| format!("{} {} {} value", set.full_name(), value.name(), value.number())));
    }
    for service in pool.services() {
        found.extend(service.methods().map(|method| {
            let stream = if method.is_server_streaming() { "stream " } else { "" };
            let (from, to) = (method.input(), method.output());
            format!("{} {} 0 {} -> {stream}{}", service.full_name(), method.name(), from.full_name(), to.full_name())
        }));
    }
    let missing: Vec<_> = expected.difference(&found).collect();
    let surplus: Vec<_> = found.difference(&expected).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "missing {missing:#?}, surplus {surplus:#?}");
}

#[test]
fn recorded_requests_and_answers_come_through_unchanged() -> Result<(), Box<dyn Error>> {
    for text in [include_str!("data/request-in-forwarder.json"), include_str!("data/request-out-to-nse.json")] {
        let record: Value = serde_json::from_str(text)?;
        let request: NetworkServiceRequest = passed("networkservice.NetworkServiceRequest", &record["req"])?;
        let answer: Connection = passed("connection.Connection", &record["resp"])?;
        let asked = request.connection.expect("a connection");
        assert_eq!(asked.id, answer.id);
        assert_eq!(request.mechanism_preferences[0].r#type, "KERNEL");
        assert_eq!(answer.state(), State::Up);
        let path = answer.path.expect("a path");
        let names: Vec<_> = path.path_segments.iter().map(|segment| segment.name.as_str()).collect();
        assert_eq!(names, ["nsc-1", "nsmgr-1", "fwd-1", "nse-1"]);
        assert_eq!(path.path_segments[3].metrics["server_interface"], "KERNEL/icmp-respo-k9aF");
        assert_eq!(path.path_segments[0].expires.expect("an expiry").nanos, 736_717_021);
    }
    Ok(())
}

#[test]
fn a_recorded_registration_comes_through_unchanged() -> Result<(), Box<dyn Error>> {
    let record: Value = serde_json::from_str(include_str!("data/register.json"))?;
    let asked: NetworkServiceEndpoint = passed("registry.NetworkServiceEndpoint", &record["req"])?;
    let answer: NetworkServiceEndpoint = passed("registry.NetworkServiceEndpoint", &record["resp"])?;
    assert_eq!(asked.network_service_labels["forwarder"].labels["p2p"], "true");
    assert!(asked.expiration_time.is_none());
    assert_eq!(answer.path_ids.first().map(String::as_str), Some("spiffe://example.org/fwd"));
    Ok(())
}

/// An identity as the bytes say it, by hand: a change of a number on both sides would otherwise go unseen.
#[test]
fn an_identity_is_the_bytes_of_the_workload_api() -> Result<(), Box<dyn Error>> {
    let bytes = b"\x0a\x10\x0a\x08spiffe:x\x12\x01c\x1a\x01k\x1a\x05\x0a\x01d\x12\x00";
    let answer = workload::X509svidResponse::decode(&bytes[..])?;
    let svid = &answer.svids[0];
    assert_eq!(
        (svid.spiffe_id.as_str(), &svid.x509_svid[..], &svid.x509_svid_key[..]),
        ("spiffe:x", &b"c"[..], &b"k"[..])
    );
    assert_eq!(answer.federated_bundles["d"], b"");
    assert_eq!(answer.encode_to_vec()[..18], bytes[..18]);
    Ok(())
}

/// What a message of a record is after it went through our types: the same, field by field.
fn passed<M: Message + Default>(name: &str, json: &Value) -> Result<M, Box<dyn Error>> {
    let descriptor = pool().get_message_by_name(name).ok_or("no such message")?;
    let recorded = DynamicMessage::deserialize(descriptor.clone(), json)?;
    let ours = M::decode(recorded.encode_to_vec().as_slice())?;
    let back = DynamicMessage::decode(descriptor, ours.encode_to_vec().as_slice())?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    let json_back = back.serialize_with_options(serde_json::value::Serializer, &options)?;
    assert_eq!(&json_back, json);
    Ok(ours)
}

fn pool() -> DescriptorPool {
    DescriptorPool::decode(DESCRIPTORS).expect("the descriptors are ours")
}

fn kind(field: &FieldDescriptor) -> String {
    let plain = |field: &FieldDescriptor| match field.kind() {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(set) => set.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    };
    if let (true, Kind::Message(entry)) = (field.is_map(), field.kind()) {
        let [key, value] = [entry.map_entry_key_field(), entry.map_entry_value_field()];
        return format!("map<{},{}>", plain(&key), plain(&value));
    }
    if field.is_list() { format!("repeated {}", plain(field)) } else { plain(field) }
}
