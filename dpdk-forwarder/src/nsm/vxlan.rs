//! VXLAN between two forwarders: what their mechanisms say to each other, and who chooses what.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ferrule_nsm::path::new_id;
use ferrule_nsm::proto::connection::Mechanism;
use tonic::Status;

/// Where our tunnels begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TunnelSite {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// What the link that has the address carries.
    pub(super) link_mtu: u32,
}

/// One tunnel, as either side makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vxlan {
    pub(super) vni: u32,
    pub(super) local: IpAddr,
    pub(super) remote: IpAddr,
    /// Of both sides: a device of the kernel has one.
    pub(super) port: u16,
    /// What it carries; 0: nobody said.
    pub(super) mtu: u32,
}

impl TunnelSite {
    /// What a tunnel of this site carries.
    pub(super) fn mtu(&self) -> u32 {
        self.link_mtu.saturating_sub(if self.address.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 })
    }

    /// What we ask another node for.
    pub(super) fn preference(&self) -> Mechanism {
        let parameters =
            [(SRC_IP, self.address.to_string()), (SRC_PORT, self.port.to_string()), (MTU, self.mtu().to_string())];
        let parameters = parameters.map(|(key, value)| (key.to_owned(), value)).into();
        Mechanism { cls: REMOTE.to_owned(), r#type: VXLAN.to_owned(), parameters }
    }

    /// What another node asks us for by a connection of this id, with what is ours to say. Again and again it is the same.
    pub(super) fn answer(&self, id: &str, asked: &Mechanism, vnis: &Vnis) -> Result<Mechanism, Status> {
        let source: IpAddr = parameter(asked, SRC_IP)?;
        let mut mechanism = asked.clone();
        let text = |key: &str| asked.parameters.get(key).filter(|text| !text.is_empty()).cloned();
        let own = self.address.to_string();
        let origin = |key: &str| text(key).and_then(|address| address.parse::<IpAddr>().ok());
        // As the Go forwarders compare them: the 16 bytes of each.
        let bytes = |address: IpAddr| match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        let (from, to) =
            (bytes(origin(ORIG_SRC_IP).unwrap_or(source)), bytes(origin(ORIG_DST_IP).unwrap_or(self.address)));
        let known = text(VNI).and_then(|vni| vni.parse().ok());
        // Two that open tunnels to each other at the same time never choose the same.
        let vni = vnis.take(id, known, from <= to)?;
        let theirs = text(MTU).and_then(|mtu| mtu.parse().ok()).filter(|mtu| *mtu > 0);
        let mtu = theirs.map_or(self.mtu(), |theirs: u32| theirs.min(self.mtu()));
        let ours = [(DST_IP, own), (DST_PORT, self.port.to_string()), (VNI, vni.to_string()), (MTU, mtu.to_string())];
        mechanism.parameters.extend(ours.map(|(key, value)| (key.to_owned(), value)));
        Ok(mechanism)
    }
}

impl Vxlan {
    /// As whoever has asked makes it, from the answer.
    pub(super) fn asked(mechanism: &Mechanism, site: &TunnelSite) -> Result<Self, Status> {
        let mtu = parameter(mechanism, MTU).unwrap_or(0);
        Self::checked(mechanism, site, DST_IP, DST_PORT, mtu)
    }

    /// As whoever was asked makes it, from its own answer.
    pub(super) fn answered(mechanism: &Mechanism, site: &TunnelSite) -> Result<Self, Status> {
        Self::checked(mechanism, site, SRC_IP, SRC_PORT, parameter(mechanism, MTU)?)
    }

    fn checked(
        mechanism: &Mechanism,
        site: &TunnelSite,
        address: &'static str,
        port: &'static str,
        mtu: u32,
    ) -> Result<Self, Status> {
        let (remote, vni): (IpAddr, u32) = (parameter(mechanism, address)?, parameter(mechanism, VNI)?);
        let port: u16 = if mechanism.parameters.contains_key(port) { parameter(mechanism, port)? } else { PORT };
        if port != site.port {
            return Err(Status::unimplemented(format!(
                "the other forwarder has its tunnels at port {port}, and this one at {}: give both the same (NSM_VXLAN_PORT)",
                site.port
            )));
        }
        if vni > VNI_MAX {
            return Err(too_long(vni));
        }
        if remote.is_ipv4() != site.address.is_ipv4() {
            return Err(Status::invalid_argument(format!("{address}: {remote} is not reached from {}", site.address)));
        }
        Ok(Self { vni, local: site.address, remote, port, mtu })
    }
}

/// The tunnels of this node: the number of each, and the connection that has it. The kernel has one tunnel of a number,
/// whichever node it leads to.
#[derive(Default)]
pub(super) struct Vnis(Mutex<BTreeMap<u32, Taken>>);

/// A number is of a connection.
struct Taken {
    id: String,
    /// Whether it was more than asked for.
    is_made: bool,
}

impl Vnis {
    /// A number that no other connection has; that of its tunnel, or one that this connection says it has, stays. One that it was given before,
    /// and nothing was made with, is free again: nobody collects numbers by asking.
    fn take(&self, id: &str, known: Option<u32>, even: bool) -> Result<u32, Status> {
        if let Some(vni) = known.filter(|vni| *vni > VNI_MAX) {
            return Err(too_long(vni));
        }
        let mut taken = self.lock();
        taken.retain(|_, of| of.is_made || of.id != id);
        let asked_for = || Taken { id: id.to_owned(), is_made: false };
        // Whoever was started again has forgotten it, and has left the tunnel.
        let own = || taken.iter().find(|(_, of)| of.id == id).map(|(vni, _)| *vni);
        if let Some(vni) = known.or_else(own)
            && taken.entry(vni).or_insert_with(asked_for).id == id
        {
            return Ok(vni);
        }
        for _ in 0..TRIES {
            // The first 32 bits of a new id are random.
            let random = new_id().get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default();
            let vni = (random & (VNI_MAX & !1)) | u32::from(!even);
            if vni > 1 && !taken.contains_key(&vni) {
                taken.insert(vni, asked_for());
                return Ok(vni);
            }
        }
        Err(Status::resource_exhausted("no number for a tunnel is free"))
    }

    /// A tunnel of this number, which either forwarder has chosen, is made for a connection, unless another one has it. Those of before stay
    /// until the connection is settled.
    pub(super) fn claim(&self, id: &str, vni: u32) -> bool {
        let mut taken = self.lock();
        let of = taken.entry(vni).or_insert_with(|| Taken { id: id.to_owned(), is_made: true });
        of.is_made |= of.id == id;
        of.id == id
    }

    /// It is somebody's whom we do not know.
    pub(super) fn forget(&self, vni: u32) {
        self.lock().remove(&vni);
    }

    /// A connection has the tunnel of this number, and no other one.
    pub(super) fn settle(&self, id: &str, vni: Option<u32>) {
        self.lock().retain(|number, of| of.id != id || Some(*number) == vni);
    }

    /// Whether a connection has one.
    pub(super) fn has(&self, id: &str) -> bool {
        self.lock().values().any(|of| of.id == id)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Taken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_long(vni: u32) -> Status {
    Status::invalid_argument(format!("{VNI}: {vni} has more than 24 bits"))
}

/// What a parameter says.
pub(super) fn parameter<T: std::str::FromStr>(mechanism: &Mechanism, key: &'static str) -> Result<T, Status> {
    let text = mechanism.parameters.get(key).map_or("", String::as_str);
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        Status::invalid_argument(format!("the mechanism {}: {key} {shown:?} means nothing", mechanism.r#type))
    })
}

/// The mechanism's name.
pub(super) const VXLAN: &str = "VXLAN";
/// Of mechanisms between nodes.
pub(super) const REMOTE: &str = "REMOTE";
/// Where the tunnel of whoever asks begins, and that of who is asked.
pub(super) const SRC_IP: &str = "src_ip";
pub(super) const DST_IP: &str = "dst_ip";
pub(super) const SRC_PORT: &str = "src_port";
pub(super) const DST_PORT: &str = "dst_port";
/// What an address was before a proxy between domains changed it.
const ORIG_SRC_IP: &str = "orig_src_ip";
const ORIG_DST_IP: &str = "orig_dst_ip";
pub(super) const VNI: &str = "vni";
/// The parameter that says what a tunnel carries.
pub(super) const MTU: &str = "MTU";
const PORT: u16 = super::settings::VXLAN_PORT;
const VNI_MAX: u32 = (1 << 24) - 1;
/// Headers of IP, UDP, VXLAN and Ethernet, with a VLAN tag.
const OVERHEAD_V4: u32 = 54;
const OVERHEAD_V6: u32 = 74;
const TRIES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn site(address: &str) -> TunnelSite {
        TunnelSite { address: address.parse().unwrap(), port: 4789, link_mtu: 1500 }
    }

    #[test]
    fn both_sides_make_the_same_tunnel() {
        let (here, there) = (site("10.0.0.1"), TunnelSite { link_mtu: 1400, ..site("10.0.0.2") });
        let answer = there.answer("a", &here.preference(), &Vnis::default()).unwrap();
        let (ours, theirs) = (Vxlan::asked(&answer, &here).unwrap(), Vxlan::answered(&answer, &there).unwrap());
        assert_eq!((ours.local, ours.remote), (theirs.remote, theirs.local));
        assert_eq!((ours.vni, ours.mtu, ours.port), (theirs.vni, theirs.mtu, theirs.port));
        assert_eq!(ours.mtu, 1346);
        assert_eq!(here.preference().parameters["MTU"], "1446");
    }

    #[test]
    fn numbers_stay_and_two_that_ask_each_other_never_choose_the_same() {
        let (low, high, vnis) = (site("10.0.0.1"), site("10.0.0.2"), Vnis::default());
        for id in 0..100 {
            let even: u32 =
                parameter(&high.answer(&format!("{id} a"), &low.preference(), &vnis).unwrap(), VNI).unwrap();
            let odd: u32 = parameter(&low.answer(&format!("{id} b"), &high.preference(), &vnis).unwrap(), VNI).unwrap();
            assert_eq!((even % 2, odd % 2), (0, 1));
        }
        let answer = high.answer("c", &low.preference(), &vnis).unwrap();
        assert_eq!(high.answer("c", &answer, &vnis).unwrap(), answer);
        // By the addresses from before a proxy changed them.
        let mut proxied = low.preference();
        proxied.parameters.insert(ORIG_SRC_IP.to_owned(), "9.0.0.1".to_owned());
        proxied.parameters.insert(ORIG_DST_IP.to_owned(), "8.0.0.1".to_owned());
        let odd: u32 = parameter(&high.answer("d", &proxied, &vnis).unwrap(), VNI).unwrap();
        assert_eq!(odd % 2, 1);
        vnis.settle("c", None);
        assert_eq!(vnis.lock().len(), 201);
    }

    #[test]
    fn a_number_is_of_one_connection_whatever_others_say() {
        let (there, vnis) = (site("10.0.0.9"), Vnis::default());
        let first = there.answer("a", &site("10.0.0.1").preference(), &vnis).unwrap();
        let mut claimed = site("10.0.0.2").preference();
        claimed.parameters.insert(VNI.to_owned(), first.parameters[VNI].clone());
        let second = there.answer("b", &claimed, &vnis).unwrap();
        assert_ne!(second.parameters[VNI], first.parameters[VNI]);
        vnis.settle("b", None);
        assert_eq!(there.answer("a", &first, &vnis).unwrap(), first);
    }

    #[test]
    fn who_was_started_again_and_has_forgotten_its_number_is_told_that_of_the_tunnel_that_is_there() {
        let (there, vnis) = (site("10.0.0.9"), Vnis::default());
        let ask = || parameter(&there.answer("a", &site("10.0.0.1").preference(), &vnis).unwrap(), VNI).unwrap();
        let number: u32 = ask();
        assert!(vnis.claim("a", number));
        assert_eq!(ask(), number);
        vnis.forget(number);
        assert_ne!(ask(), number, "the kernel says that it is another one's");
    }

    #[test]
    fn a_connection_has_the_number_of_its_tunnel_and_one_that_it_asks_for_however_often_it_asks() {
        let (there, vnis) = (site("10.0.0.9"), Vnis::default());
        let ask = |vni: u32| {
            let mut asked = site("10.0.0.1").preference();
            asked.parameters.insert(VNI.to_owned(), vni.to_string());
            there.answer("a", &asked, &vnis)
        };
        let numbers = || vnis.lock().keys().copied().collect::<Vec<_>>();
        ask(7).unwrap();
        assert!(vnis.claim("a", 7));
        for vni in 100..200 {
            ask(vni).unwrap();
        }
        assert_eq!(numbers(), [7, 199]);
        // Its tunnel is changed, and the one of before is there until that is done.
        assert!(vnis.claim("a", 199));
        ask(200).unwrap();
        assert_eq!(numbers(), [7, 199, 200]);
        vnis.settle("a", Some(199));
        assert_eq!(numbers(), [199]);
        assert!(vnis.claim("b", 7) && !vnis.claim("b", 199));
        assert_eq!(ask(VNI_MAX + 1).unwrap_err().code(), tonic::Code::InvalidArgument);
        assert_eq!(numbers(), [7, 199]);
    }

    #[test]
    fn addresses_are_compared_as_numbers_and_not_as_texts() {
        let (nine, ten) = (site("10.0.0.9"), site("10.0.0.10"));
        let even: u32 = parameter(&ten.answer("a", &nine.preference(), &Vnis::default()).unwrap(), VNI).unwrap();
        let odd: u32 = parameter(&nine.answer("a", &ten.preference(), &Vnis::default()).unwrap(), VNI).unwrap();
        assert_eq!((even % 2, odd % 2), (0, 1));
    }

    #[test]
    fn nonsense_is_refused() {
        let (here, there) = (site("10.0.0.1"), site("10.0.0.2"));
        let answer = there.answer("a", &here.preference(), &Vnis::default()).unwrap();
        for (key, value) in [
            ("vni", "16777216"),
            ("vni", "x"),
            ("dst_ip", ""),
            ("dst_ip", "2001:db8::1"),
            ("dst_port", "70000"),
            ("dst_port", "4790"),
        ] {
            let mut wrong = answer.clone();
            wrong.parameters.insert(key.to_owned(), value.to_owned());
            assert!(Vxlan::asked(&wrong, &here).is_err(), "{key} {value}");
        }
        assert!(there.answer("a", &Mechanism::default(), &Vnis::default()).is_err());
    }

    #[test]
    fn a_preference_says_three_things() {
        let keys = site("2001:db8::1").preference().parameters;
        assert_eq!(keys.keys().collect::<Vec<_>>(), ["MTU", "src_ip", "src_port"]);
        assert_eq!(keys["MTU"], "1426");
    }
}
