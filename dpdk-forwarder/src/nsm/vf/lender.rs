//! What becomes of the VFs of connections: `sriov-manager` is asked, and the one that a pod has is changed under its own lease. It is not
//! ours: it stays the pod's when the connection ends.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ferrule_dataplane::spec::NetNs as NetNsSpec;
use ferrule_ffi::netlink::NetlinkError;
use ferrule_ffi::netns::{NetNs, namespace_at};
use sriov_manager_client::tokens::Tokens;
use sriov_manager_client::{Client, connect, v1};
use tonic::{Code, Status};

use super::super::interface::InterfacePlace;
use super::super::namespaces::namespaces;
use super::netdev::Presence;
use super::record::{Records, UsedVf};
use super::{SriovConfig, VfForm, VfLink, netdev};

/// Where VFs come from, and what is kept of them.
#[derive(Clone, Debug)]
pub(in crate::nsm) struct VfLenderSettings {
    /// The socket of the manager.
    pub(in crate::nsm) manager: PathBuf,
    /// Where `device-plugin` puts tokens.
    pub(in crate::nsm) tokens: PathBuf,
    /// Where is written what VFs were before.
    pub(in crate::nsm) state: PathBuf,
    /// Which tokens there are; none: all that `device-plugin` makes.
    pub(in crate::nsm) config: Option<SriovConfig>,
    /// The directory that holds `sys`.
    pub(in crate::nsm) root: PathBuf,
}

/// Makes VFs what connections want. Each call blocks.
pub(in crate::nsm) struct VfLender {
    settings: VfLenderSettings,
    tokens: Tokens,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    /// Opened when they are needed first: a node without VFs needs no directory.
    records: Option<Records>,
    /// By their leases.
    claims: BTreeMap<String, Claim>,
}

/// A VF is of a connection.
struct Claim {
    connection: String,
    /// By which it was asked for.
    token: String,
    /// When the lease began under which it was made; none: it is not made yet.
    since: Option<u64>,
    parameters: BTreeMap<String, String>,
}

impl VfLender {
    pub(in crate::nsm) fn new(settings: VfLenderSettings) -> Self {
        let tokens = Tokens::at(&settings.tokens);
        Self { settings, tokens, used: Mutex::default() }
    }

    /// The lease that a token is for.
    pub(super) fn lease_of(&self, token: &str) -> Result<String, Status> {
        let read = self.tokens.lease_of(token);
        let directory = self.tokens.directory().display();
        match read {
            Ok(Some(lease)) => Ok(lease),
            Ok(None) => Err(Status::permission_denied(format!(
                "the tokenID is none that device-plugin of this node has given to a pod that is there ({directory})"
            ))),
            Err(error) => Err(Status::internal(format!("look for the tokenID in {directory}: {error}"))),
        }
    }

    /// Whether it is new.
    pub(super) fn make(&self, link: &VfLink) -> Result<bool, Status> {
        self.claim(link)?;
        // When that fails, whoever asked for it takes it back.
        let (is_new, parameters) = self.make_claimed(link)?;
        if let Some(claim) = self.used().claims.get_mut(&link.lease) {
            claim.parameters = parameters;
        }
        Ok(is_new)
    }

    /// One connection has it, unless its token is void: the pod that was given the VF next has a lease of the same name. One of a forwarder
    /// that was killed has it no more.
    fn claim(&self, link: &VfLink) -> Result<(), Status> {
        let mut used = self.used();
        let is_good = |token: &str| matches!(self.tokens.lease_of(token), Ok(Some(lease)) if lease == link.lease);
        match used.claims.get(&link.lease) {
            Some(claim) if claim.connection == link.connection && claim.token == link.end.token => return Ok(()),
            Some(claim)
                if claim.connection != link.connection && (is_good(&claim.token) || !is_good(&link.end.token)) =>
            {
                return Err(of_another(link, claim));
            }
            _ => {}
        }
        let (connection, token) = (link.connection.clone(), link.end.token.clone());
        let claim = Claim { connection, token, since: None, parameters: BTreeMap::new() };
        used.claims.insert(link.lease.clone(), claim);
        Ok(())
    }

    /// What a connection has made under one lease, it does not go on with under the next one.
    fn keep_lease(&self, link: &VfLink, lease: &v1::Lease) -> Result<(), Status> {
        let mut used = self.used();
        match used.claims.get_mut(&link.lease) {
            Some(claim) if claim.connection != link.connection => Err(of_another(link, claim)),
            Some(claim) if claim.since.is_some_and(|since| since != lease.since) => {
                Err(Status::failed_precondition(format!(
                    "the lease {} under which this connection has its VF has ended, and another one has begun: ask with the token of that",
                    link.lease
                )))
            }
            Some(claim) => {
                claim.since = Some(lease.since);
                Ok(())
            }
            None => Err(Status::unavailable("the connection was closed meanwhile")),
        }
    }

    fn make_claimed(&self, link: &VfLink) -> Result<(bool, BTreeMap<String, String>), Status> {
        let vf = self.find(&link.lease)?.ok_or_else(|| {
            Status::unavailable(format!(
                "the lease {} of this tokenID is not there: its pod has no VF yet, or no more",
                link.lease
            ))
        })?;
        self.check(link, &vf)?;
        let lease = vf.lease.clone().unwrap_or_default();
        self.keep_lease(link, &lease)?;
        let record = self.with_records(|records| records.of(&vf.address))?;
        let is_own = |record: &UsedVf| record.connection == link.connection && record.is_under(&lease);
        let (before, interface) = match record {
            // Of this connection, perhaps by a forwarder that was killed.
            Some(record) if is_own(&record) => (record.before, record.interface),
            Some(record) => {
                self.give_back(&record, None)?;
                let again = self.find(&link.lease)?.and_then(|vf| vf.lease);
                let again =
                    again.ok_or_else(|| Status::unavailable(format!("the lease {} has just ended", link.lease)))?;
                (again, String::new())
            }
            None => (lease, String::new()),
        };
        let alias = link.alias();
        let presence = match &link.end.form {
            VfForm::Kernel { place, .. } => {
                netdev::look_at(place, &alias).map_err(|error| failed(link, "look at", &error))?
            }
            VfForm::Vfio => Presence::None,
        };
        let driver = match link.end.form {
            VfForm::Kernel { .. } => v1::Driver::Kernel,
            VfForm::Vfio => v1::Driver::VfioPci,
        };
        let kept = before.attributes.clone().unwrap_or_default();
        let attributes = v1::Attributes {
            mac: Some(link.end.mac.to_string()),
            vlan: vlan(link, kept.vlan)?,
            // Of an interface, which gets it in its namespace.
            mtu: None,
            ..kept
        };
        let (alias_kept, interface) =
            if driver == v1::Driver::Kernel { (alias.clone(), interface) } else { (String::new(), String::new()) };
        let mut used = UsedVf { connection: link.connection.clone(), alias: alias_kept, interface, before };
        // First of all: whoever comes after us must know of it.
        self.with_records(|records| records.put(&used))?;
        let vf = self.change(&used.before, driver, attributes)?;
        let mut parameters = BTreeMap::from([(PCI_ADDRESS.to_owned(), vf.address.clone())]);
        match &link.end.form {
            VfForm::Vfio => parameters.extend(self.vfio_parameters(&vf)?),
            VfForm::Kernel { place, mtu } if presence == Presence::None => {
                used.interface = self.interface_of(&vf)?;
                self.with_records(|records| records.put(&used))?;
                netdev::bring(&used.interface, place, &alias, link.end.mac, *mtu)
                    .map_err(|error| failed(link, "bring into the pod the interface of", &error))?;
            }
            VfForm::Kernel { .. } => {}
        }
        Ok((presence != Presence::AtPlace, parameters))
    }

    /// What the file of tokens says of it.
    fn check(&self, link: &VfLink, vf: &v1::Vf) -> Result<(), Status> {
        let name = link.lease.rsplit_once('@').map_or("", |(name, _)| name);
        match &self.settings.config {
            Some(config) if !config.allows(name, &vf.pf) => Err(Status::permission_denied(format!(
                "the SR-IOV configuration of this forwarder has no {name} of the PF {}: add it to NSM_SRIOV_CONFIG_FILE, as for device-plugin",
                vf.pf
            ))),
            _ => Ok(()),
        }
    }

    /// It is its pod's as it was before.
    pub(super) fn remove(&self, link: &VfLink) -> Result<(), Status> {
        let is_ours = self.used().claims.get(&link.lease).is_some_and(|claim| claim.connection == link.connection);
        if !is_ours {
            return Ok(());
        }
        let place = match &link.end.form {
            VfForm::Kernel { place, .. } => Some(place),
            VfForm::Vfio => None,
        };
        let given = self.give_back_of(&link.connection, place, |used| used.before.id == link.lease);
        // What cannot be given back now is when the token is used next, or by the next forwarder.
        self.used().claims.remove(&link.lease);
        given.map(drop)
    }

    /// Gives back what a forwarder that was killed has changed for a connection. Whether there was something.
    pub(in crate::nsm) fn give_back_unknown(&self, connection: &str) -> Result<bool, Status> {
        if !self.settings.state.is_dir() {
            return Ok(false);
        }
        self.give_back_of(connection, None, |_| true)
    }

    /// The same of all connections of which `claim` says that nobody wants them, which it goes on saying as long as it lives what it
    /// returns. How many VFs it were.
    pub(in crate::nsm) fn give_back_left<C>(&self, claim: impl Fn(&str) -> Option<C>) -> usize {
        if !self.settings.state.is_dir() {
            return 0;
        }
        let all = self.with_records(Records::all).unwrap_or_else(|status| {
            tracing::warn!(%status, "VFs that a forwarder left are not looked for");
            Vec::new()
        });
        let mut given = 0;
        for used in all {
            let Some(_claimed) = claim(&used.connection) else { continue };
            match self.give_back(&used, None) {
                Ok(()) => given += 1,
                Err(status) => {
                    tracing::warn!(vf = used.before.vf, %status, "a VF that a forwarder left is not given back");
                }
            }
        }
        given
    }

    fn give_back_of(
        &self,
        connection: &str,
        place: Option<&InterfacePlace>,
        is_meant: impl Fn(&UsedVf) -> bool,
    ) -> Result<bool, Status> {
        let all = self.with_records(Records::all)?;
        let mut any = false;
        for used in all.iter().filter(|used| used.connection == connection && is_meant(used)) {
            self.give_back(used, place)?;
            any = true;
        }
        Ok(any)
    }

    /// Its interface comes back first: what is in a pod is not given another driver.
    fn give_back(&self, used: &UsedVf, place: Option<&InterfacePlace>) -> Result<(), Status> {
        let internal =
            |tried: &str, error: &NetlinkError| Status::internal(format!("{tried} of {}: {error}", used.before.vf));
        if !used.alias.is_empty() && !used.interface.is_empty() {
            bring_home(used, place).map_err(|error| internal("bring home the interface", &error))?;
        }
        // A lease that ended meanwhile took all with it, and one of the same name may have come in its place.
        let now = self.find(&used.before.id)?.and_then(|vf| vf.lease).filter(|now| used.is_under(now));
        if let Some(now) =
            now.filter(|now| now.attributes != used.before.attributes || now.driver != used.before.driver)
        {
            let before = v1::Lease { tenant: now.tenant, ..used.before.clone() };
            self.change(&before, before.driver(), before.attributes.clone().unwrap_or_default())?;
        }
        self.with_records(|records| records.remove(&used.before.vf))
    }

    /// What the pod of a lease is told of its VF.
    pub(super) fn parameters(&self, lease: &str, connection: &str) -> BTreeMap<String, String> {
        let used = self.used();
        let claim = used.claims.get(lease).filter(|claim| claim.connection == connection);
        claim.map(|claim| claim.parameters.clone()).unwrap_or_default()
    }

    /// The numbers by which a container makes the nodes of VFIO, if it has none.
    fn vfio_parameters(&self, vf: &v1::Vf) -> Result<BTreeMap<String, String>, Status> {
        let group = vf.vfio_group.strip_prefix("/dev/vfio/").filter(|group| !group.is_empty());
        let group = group.ok_or_else(|| Status::failed_precondition(format!("{} has no group of VFIO", vf.address)))?;
        let number = |path: PathBuf| {
            let read = std::fs::read_to_string(&path);
            let text = read.map_err(|error| Status::internal(format!("read {}: {error}", path.display())))?;
            let (major, minor) = text.trim().split_once(':').unwrap_or_default();
            Ok::<_, Status>((major.to_owned(), minor.to_owned()))
        };
        let sys = self.settings.root.join("sys/class");
        let (vfio_major, vfio_minor) = number(sys.join("misc/vfio/dev"))?;
        let (major, minor) = number(sys.join("vfio").join(group).join("dev"))?;
        let plain = group.trim_start_matches("noiommu-").to_owned();
        let parameters = [
            ("iommuGroup", plain),
            ("vfioMajor", vfio_major),
            ("vfioMinor", vfio_minor),
            ("deviceMajor", major),
            ("deviceMinor", minor),
        ];
        Ok(parameters.map(|(key, value)| (key.to_owned(), value)).into())
    }

    /// The interface of a VF that has just got its driver.
    fn interface_of(&self, vf: &v1::Vf) -> Result<String, Status> {
        let end = Instant::now() + INTERFACE_MAX;
        let mut told = Some(vf.clone());
        loop {
            if let Some(interface) = told.and_then(|vf| vf.netdevs.into_iter().next()) {
                return Ok(interface);
            }
            if Instant::now() > end {
                return Err(Status::unavailable(format!("{} has no interface in the node's namespace", vf.address)));
            }
            sleep(INTERFACE_POLL);
            let lease = vf.lease.as_ref().map(|lease| lease.id.clone()).unwrap_or_default();
            told = self.find(&lease)?;
        }
    }

    /// The VF of a lease.
    fn find(&self, lease: &str) -> Result<Option<v1::Vf>, Status> {
        self.ask(async |mut client| {
            let list = client.list(v1::ListRequest::default()).await?.into_inner();
            Ok(list.vfs.into_iter().find(|vf| vf.lease.as_ref().is_some_and(|of| of.id == lease)))
        })
    }

    fn change(&self, lease: &v1::Lease, driver: v1::Driver, attributes: v1::Attributes) -> Result<v1::Vf, Status> {
        let request = v1::AcquireRequest {
            id: lease.id.clone(),
            tenant: lease.tenant.clone(),
            vf: lease.vf.clone(),
            driver: driver.into(),
            attributes: Some(attributes),
            owner: lease.owner.clone(),
            until: lease.until.clone(),
            ..v1::AcquireRequest::default()
        };
        let answer = self.ask(async |mut client| Ok(client.acquire(request).await?.into_inner()))?;
        answer.vf.ok_or_else(|| Status::internal("sriov-manager has answered without a VF"))
    }

    /// Asks the manager, on this thread.
    fn ask<T, F>(&self, question: impl FnOnce(Client) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Status::internal(format!("start a runtime: {error}")))?;
        let answer = async {
            let client = connect(&self.settings.manager).await;
            question(client.map_err(|error| Status::unavailable(error.to_string()))?).await
        };
        // The timer is the runtime's, so it is made in it.
        let answered = runtime.block_on(async { tokio::time::timeout(ANSWER_MAX, answer).await });
        let late = |_| Status::unavailable(format!("sriov-manager does not answer within {ANSWER_MAX:?}: see its log"));
        answered.map_err(late)?.map_err(|status| match status.code() {
            // Whoever asked us is told the manager's words, and not its details.
            Code::Unavailable | Code::ResourceExhausted => Status::unavailable(status.message()),
            _ => Status::failed_precondition(format!("sriov-manager: {}", status.message())),
        })
    }

    fn with_records<T>(&self, work: impl FnOnce(&Records) -> std::io::Result<T>) -> Result<T, Status> {
        let mut used = self.used();
        if used.records.is_none() {
            used.records = Some(Records::open(&self.settings.state).map_err(Status::failed_precondition)?);
        }
        let records = used.records.as_ref().ok_or_else(|| Status::internal("they were just opened"))?;
        let state: &Path = &self.settings.state;
        work(records).map_err(|error| Status::internal(format!("keep what a VF was in {}: {error}", state.display())))
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Out of where it is known to be, or wherever it is: a namespace that ended has left it in the node's, under the name that it had there. One
/// that we alone keep open is found nowhere.
fn bring_home(used: &UsedVf, place: Option<&InterfacePlace>) -> Result<(), NetlinkError> {
    if let Some(place) = place
        && netdev::take_back(&NetNsSpec::Open(place.netns.clone()).open()?, &used.alias, &used.interface)?
    {
        return Ok(());
    }
    let mut seen = BTreeSet::new();
    for path in namespaces() {
        let Ok(Some(found)) = namespace_at(&path) else { continue };
        if seen.insert(found.inode)
            && let Ok(netns) = NetNs::open(&path)
            && netdev::take_back(&netns, &used.alias, &used.interface)?
        {
            break;
        }
    }
    Ok(())
}

/// The VLAN that the endpoint asks for. What the operator has put into one does not get out of that by a connection.
fn vlan(link: &VfLink, kept: Option<v1::Vlan>) -> Result<Option<v1::Vlan>, Status> {
    match (kept, link.end.vlan) {
        (kept, 0) => Ok(kept),
        (Some(kept), id) if kept.id == id => Ok(Some(kept)),
        (Some(kept), id) if kept.id != 0 => Err(Status::permission_denied(format!(
            "the connection asks for VLAN {id} (vlan_tag), and the VF of {} is in VLAN {}, by the attributes of its resource: change either",
            link.lease, kept.id
        ))),
        (_, id) => Ok(Some(v1::Vlan { id, ..v1::Vlan::default() })),
    }
}

fn of_another(link: &VfLink, claim: &Claim) -> Status {
    Status::failed_precondition(format!(
        "the VF of this tokenID ({}) is that of another connection, {}: close that first",
        link.lease, claim.connection
    ))
}

fn failed(link: &VfLink, tried: &str, error: &NetlinkError) -> Status {
    Status::failed_precondition(format!("{tried} {}: {error}", link.lease))
}

/// The parameter that says which VF it is.
pub(in crate::nsm) const PCI_ADDRESS: &str = "pciAddress";
/// One call into the kernel may take 15 s.
const ANSWER_MAX: Duration = Duration::from_mins(1);
/// A driver makes the interface a moment after it has got its VF.
const INTERFACE_MAX: Duration = Duration::from_secs(5);
const INTERFACE_POLL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
