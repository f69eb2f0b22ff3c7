//! What others see as messages, and requests as what the library takes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use sriov_manager_client::v1;

use crate::address::{Driver, PciAddress, VFIO_PCI};
use crate::attributes::Attributes;
use crate::holders::Holder;
use crate::inventory::Function;
use crate::kernel::EswitchMode;
use crate::lease::{Lease, Stage, Until};
use crate::policy::PeerCredentials;
use crate::sysfs::RdmaDevice;
use crate::vfs::{
    Again, Choice, Order, PfDetails, PfView, Place, Reason, Recovery, Request, VfError, VfView, Vfs, View,
};

/// The answer to a list, judged for a driver; none: for that of the pool.
pub fn response(view: &View, driver: Option<Driver>) -> v1::ListResponse {
    v1::ListResponse {
        pfs: view.pfs.iter().map(pf).collect(),
        vfs: view.vfs.iter().map(|view| vf(view, driver)).collect(),
        lost: view.lost.iter().map(|lost| lease(lost, None)).collect(),
        node: Some(node(view)),
    }
}

fn node(view: &View) -> v1::Node {
    let owner = |(name, claim): (&String, &crate::lease::Claim)| v1::Owner {
        name: name.clone(),
        uid: claim.uid,
        pools: claim.pools.iter().cloned().collect(),
        vfs: claim.vfs.iter().map(ToString::to_string).collect(),
        since: claim.since,
    };
    let recovery = match view.recovery {
        Recovery::Counts => v1::Recovery::Counts,
        Recovery::Leases => v1::Recovery::Leases,
        Recovery::Done => v1::Recovery::Done,
    };
    v1::Node {
        generation: view.generation,
        policies_refused: view.policies_refused.clone().unwrap_or_default(),
        warnings: view.warnings.clone(),
        owners: view.claims.iter().map(owner).collect(),
        recovery: recovery.into(),
        policies: Some(v1::Policies {
            wanted_generation: view.policies.wanted,
            reached_generation: view.policies.reached,
            file: view.policies.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default(),
        }),
    }
}

fn pf(view: &PfView) -> v1::Pf {
    let function = &view.pf.function;
    v1::Pf {
        address: view.pf.address.to_string(),
        netdev: view.pf.netdev().unwrap_or_default().to_owned(),
        driver: function.driver.clone().unwrap_or_default(),
        vendor: function.vendor,
        device: function.device,
        total_vfs: view.pf.total_vfs,
        num_vfs: view.pf.vfs.len() as u32,
        numa: function.numa,
        stuck: view.stuck.as_ref().map(|stuck| stuck.what.clone()).unwrap_or_default(),
        short: view.short.clone().unwrap_or_default(),
        cordoned: view.cordon.as_ref().map(|cordon| cordon.why.clone()).unwrap_or_default(),
        mtu: function.mtu,
        permanent_mac: view.card.map(|card| card.to_string()).unwrap_or_default(),
        link_type: link_type(function),
        alt_names: function.altnames.clone(),
        acpi_index: function.acpi_index,
        rdma: rdma(function),
        mac: function.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        admin_up: view.pf.admin_up,
        link_up: view.pf.link_up,
        link_speed: None,
        eswitch_mode: v1::EswitchMode::Unspecified.into(),
        externally_managed: view.externally_managed,
    }
}

/// Puts what PFs were asked for into a list.
pub(super) fn add_details(
    list: &mut v1::ListResponse,
    details: &BTreeMap<PciAddress, PfDetails>,
    altnames: &BTreeMap<String, Vec<String>>,
) {
    let others = |netdev: &String| altnames.get(netdev).cloned().unwrap_or_default();
    let details: HashMap<_, _> = details.iter().map(|(pf, details)| (pf.to_string(), details)).collect();
    for pf in &mut list.pfs {
        pf.alt_names = others(&pf.netdev);
        let Some(told) = details.get(&pf.address) else { continue };
        pf.link_speed = told.link_speed;
        pf.eswitch_mode = match told.eswitch_mode {
            None => v1::EswitchMode::Unspecified,
            Some(EswitchMode::Legacy) => v1::EswitchMode::Legacy,
            Some(EswitchMode::Switchdev) => v1::EswitchMode::Switchdev,
        }
        .into();
        if let Some(mac) = told.report.permanent_mac {
            pf.permanent_mac = mac.to_string();
        }
    }
    for vf in &mut list.vfs {
        vf.alt_names = vf.netdevs.iter().flat_map(others).collect();
        let Some(told) = details.get(&vf.pf) else { continue };
        vf.told = told.report.vfs.get(&vf.index).map(|state| (&state.as_wanted()).into());
        if let (true, Some(guid)) = (vf.guid.is_empty(), told.report.guids.get(&vf.index)) {
            vf.guid = guid.to_string();
        }
    }
}

/// As the SR-IOV operator and NPWG write it.
fn link_type(function: &Function) -> String {
    match function.link_type {
        None => String::new(),
        Some(ARPHRD_ETHER) => "ETH".to_owned(),
        Some(ARPHRD_INFINIBAND) => "IB".to_owned(),
        Some(other) => other.to_string(),
    }
}

fn rdma(function: &Function) -> Vec<v1::Rdma> {
    let device = |device: &RdmaDevice| v1::Rdma { device: device.name.clone(), nodes: device.nodes.clone() };
    function.rdma.iter().map(device).collect()
}

pub(super) fn vf(view: &VfView, driver: Option<Driver>) -> v1::Vf {
    let function = &view.vf.function;
    let judged = view.reasons(driver.or(view.pool_driver).unwrap_or(Driver::None));
    let reasons = || judged.iter().filter(|reason| !matches!(reason, Reason::Lent { .. }));
    let state = if view.lease.is_some() {
        v1::VfState::Lent
    } else if reasons().next().is_some() {
        v1::VfState::Blocked
    } else if view.busy {
        v1::VfState::Busy
    } else {
        v1::VfState::Free
    };
    let is_vfio = function.driver.as_deref() == Some(VFIO_PCI);
    let node = |below: Option<String>| below.filter(|_| is_vfio).map(|below| format!("/dev/vfio/{below}"));
    let group =
        function.iommu_group.map(|group| if view.noiommu { format!("noiommu-{group}") } else { group.to_string() });
    v1::Vf {
        address: view.vf.address.to_string(),
        pf: view.vf.pf.to_string(),
        pf_name: view.pf_name.clone(),
        index: view.vf.index,
        iommu_group: function.iommu_group,
        numa: function.numa,
        driver: function.driver.clone().unwrap_or_default(),
        netdevs: function.netdevs.clone(),
        vendor: function.vendor,
        device: function.device,
        state: state.into(),
        lease: view.lease.as_ref().map(|lent| lease(lent, view.forbidden.as_ref())),
        pools: view.pools.clone(),
        reasons: reasons().map(reason).collect(),
        owner: view.owner.clone().unwrap_or_default(),
        vfio_group: node(group).unwrap_or_default(),
        vfio_device: node(view.vf.vfio_device.as_ref().map(|device| format!("devices/{device}"))).unwrap_or_default(),
        noiommu: is_vfio && view.noiommu,
        link_type: link_type(function),
        alt_names: function.altnames.clone(),
        acpi_index: function.acpi_index,
        rdma: rdma(function),
        mac: function.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: function.mtu,
        guid: function.rdma.iter().find_map(|device| device.guid).map(|guid| guid.to_string()).unwrap_or_default(),
        representor: view.representor.clone().unwrap_or_default(),
        told: None,
    }
}

pub(super) fn lease(lease: &Lease, forbidden: Option<&String>) -> v1::Lease {
    let stage = match lease.stage {
        Stage::New => v1::Stage::New,
        Stage::Changing { .. } => v1::Stage::Changing,
        Stage::HandingOver { .. } => v1::Stage::HandingOver,
        Stage::Lent => v1::Stage::Lent,
        Stage::Releasing => v1::Stage::Releasing,
        Stage::Dirty => v1::Stage::Dirty,
    };
    // While the VF is handed over, who has it is told, and how far that is.
    let (fault, lease) = (&lease.fault, lease.in_force());
    let driver = match lease.wanted.driver {
        Driver::Kernel => v1::Driver::Kernel,
        Driver::VfioPci => v1::Driver::VfioPci,
        Driver::None => v1::Driver::None,
    };
    v1::Lease {
        id: lease.id.clone(),
        tenant: lease.tenant.clone(),
        vf: lease.vf.to_string(),
        uid: lease.uid,
        since: lease.since,
        pool: lease.pool.clone().unwrap_or_default(),
        driver: driver.into(),
        attributes: Some((&lease.wanted.attributes).into()),
        stage: stage.into(),
        fault: fault.clone().unwrap_or_default(),
        forbidden: forbidden.cloned().unwrap_or_default(),
        owner: lease.owner.clone().unwrap_or_default(),
        until: lease.until.as_ref().map(until_message),
    }
}

fn until_message(until: &Until) -> v1::Until {
    let what = match until {
        Until::Process { pid, start_time, .. } => {
            v1::until::What::Process(v1::Process { pid: *pid, start_time: *start_time })
        }
        Until::Namespace { path, .. } => v1::until::What::NetworkNamespace(path.display().to_string()),
        Until::Cgroup { path } => v1::until::What::Cgroup(path.display().to_string()),
    };
    v1::Until { what: Some(what) }
}

/// A reason as programs read it.
pub fn reason(reason: &Reason) -> v1::Reason {
    use v1::ReasonKind as Kind;
    let mut told = v1::Reason { text: reason.to_string(), ..Default::default() };
    let kind = match reason {
        Reason::Lent { id, tenant, .. } => {
            (told.lease, told.tenant) = (id.clone(), tenant.clone());
            Kind::Lent
        }
        Reason::LostLease { id } => {
            told.lease.clone_from(id);
            Kind::LostLease
        }
        Reason::Resizing { pf } => of(&mut told, *pf, Kind::Resizing),
        Reason::Held(holder) => {
            told.user = Some(user(holder));
            Kind::Held
        }
        Reason::UsedByHost(host_use) => {
            told.user = Some(v1::User { netdev: host_use.netdev.clone(), ..Default::default() });
            Kind::UsedByHost
        }
        Reason::Stuck { .. } => Kind::Stuck,
        Reason::Claimed { owner, vf } => {
            told.owner.clone_from(owner);
            of(&mut told, *vf, Kind::Claimed)
        }
        Reason::NotClaimed { owner } => {
            told.owner.clone_from(owner);
            Kind::NotClaimed
        }
        Reason::Cordoned { pf, .. } => of(&mut told, *pf, Kind::Cordoned),
        Reason::OtherPf { pf } => of(&mut told, *pf, Kind::OtherPf),
        Reason::OtherGroup { group } => {
            told.iommu_group = Some(*group);
            Kind::OtherGroup
        }
        Reason::NotBoundTo { wanted } => {
            told.driver = wanted.to_string();
            Kind::NotBoundTo
        }
        Reason::SameCall => Kind::SameCall,
        Reason::PfInGroup { group, pf } => {
            told.iommu_group = Some(*group);
            of(&mut told, *pf, Kind::PfInGroup)
        }
        Reason::DeviceInGroup { group, device, driver } => {
            (told.iommu_group, told.driver) = (Some(*group), driver.clone());
            of(&mut told, *device, Kind::DeviceInGroup)
        }
        Reason::GroupLent { group, vf, id } => {
            (told.iommu_group, told.lease) = (Some(*group), id.clone());
            of(&mut told, *vf, Kind::GroupLent)
        }
        Reason::GroupHeld { group, vf, holder } => {
            (told.iommu_group, told.user) = (Some(*group), Some(user(holder)));
            of(&mut told, *vf, Kind::GroupHeld)
        }
        Reason::GroupUsedByHost { group, vf, host_use } => {
            told.iommu_group = Some(*group);
            told.user = Some(v1::User { netdev: host_use.netdev.clone(), ..Default::default() });
            of(&mut told, *vf, Kind::UsedByHost)
        }
        Reason::DriverMissing { driver } => {
            told.driver.clone_from(driver);
            Kind::DriverMissing
        }
        Reason::NoIommu => Kind::NoIommu,
        Reason::Forbidden { .. } => Kind::Forbidden,
        Reason::NoPolicies { .. } => Kind::NoPolicies,
        Reason::Unknown(_) => Kind::Unknown,
    };
    v1::Reason { kind: kind.into(), ..told }
}

fn of(reason: &mut v1::Reason, function: PciAddress, kind: v1::ReasonKind) -> v1::ReasonKind {
    reason.function = function.to_string();
    kind
}

fn user(holder: &Holder) -> v1::User {
    match holder {
        Holder::Process { pid, comm, file } => {
            v1::User { pid: *pid, command: comm.clone(), file: file.clone(), ..Default::default() }
        }
        Holder::Unseen { file } => v1::User { file: file.clone(), ..Default::default() },
        Holder::Namespace { netdev, namespace, process } => {
            let (pid, command) = process.clone().unwrap_or_default();
            let namespace = namespace.display().to_string();
            v1::User { pid, command, netdev: netdev.clone(), namespace, ..Default::default() }
        }
        Holder::UnseenNamespace => v1::User::default(),
    }
}

/// Who asks, and from which process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub credentials: PeerCredentials,
    /// None: its namespace of processes is not ours.
    pub pid: Option<u32>,
}

/// What is asked, or what of it cannot be read.
pub(super) fn request(message: v1::AcquireRequest, peer: Peer, vfs: &Vfs) -> Result<Request, String> {
    let v1::AcquireRequest { id, tenant, driver, vf, mut pools, attributes, force, owner, until, place, again, .. } =
        message;
    // Each is looked through once, however often it is named.
    let mut named = HashSet::new();
    pools.retain(|pool| named.insert(pool.clone()));
    let vf = some(vf).map(|vf| vf_address(&vf, vfs)).transpose().map_err(|error| format!("vf: {error}"))?;
    let choice = match (vf, pools.is_empty()) {
        (Some(vf), true) => Choice::Vf(vf),
        (Some(vf), false) => Choice::VfOfPools { vf, pools },
        (None, false) => Choice::Pools(pools),
        (None, true) => return Err("vf, pools: one of both is wanted".to_owned()),
    };
    Ok(Request {
        place: place.map(|place| self::place(place, vfs)).transpose()?.unwrap_or_default(),
        driver: optional_driver(driver)?,
        attributes: self::attributes(attributes)?,
        again: again.map(self::again).transpose()?,
        until: until.map(|until| self::until(until, peer, vfs)).transpose()?,
        owner: some(owner),
        peer: peer.credentials,
        id,
        tenant,
        choice,
        force,
    })
}

fn attributes(attributes: Option<v1::Attributes>) -> Result<Attributes, String> {
    attributes
        .map_or_else(|| Ok(Attributes::default()), |told| Attributes::try_from(told).map_err(|error| error.to_string()))
}

fn again(again: v1::Again) -> Result<Again, String> {
    let from = attributes(again.from).map_err(|error| format!("again.from: {error}"))?;
    Ok(Again { from, since: Some(again.since).filter(|&since| since > 0) })
}

/// A VF by its address, which need not be there any more, or by another name.
pub(super) fn vf_address(vf: &str, vfs: &Vfs) -> Result<PciAddress, VfError> {
    vf.parse().or_else(|_| vfs.find_vf(vf))
}

fn place(place: v1::Place, vfs: &Vfs) -> Result<Place, String> {
    let order = match known("order", place.order)? {
        v1::Order::Spread => Order::Spread,
        v1::Order::Pack => Order::Pack,
    };
    let pf = some(place.pf).map(|pf| vfs.find_pf(&pf).map_err(|error| format!("place: {error}"))).transpose()?;
    let bound_to = optional_driver(place.bound_to)?;
    Ok(Place { numa: place.numa, pf, iommu_group: place.iommu_group, bound_to, order })
}

pub(super) fn until(until: v1::Until, peer: Peer, vfs: &Vfs) -> Result<Until, String> {
    match until.what {
        Some(v1::until::What::Process(v1::Process { pid, start_time })) => {
            let pid = if pid == 0 { peer.pid } else { Some(pid) };
            let pid =
                pid.ok_or("until: the process of this client is not seen from here: name it as the manager sees it")?;
            if start_time != 0 {
                return Ok(vfs.process_of(pid, start_time));
            }
            vfs.this_process(pid).ok_or_else(|| format!("until: there is no process {pid} here"))
        }
        Some(v1::until::What::NetworkNamespace(path)) => {
            let path = until_path(path)?;
            let shown = path.display().to_string();
            let found =
                vfs.this_namespace(path, peer.credentials.uid).map_err(|error| format!("until: {shown}: {error}"))?;
            found.ok_or_else(|| format!("until: there is no network namespace {shown} here"))
        }
        Some(v1::until::What::Cgroup(path)) => Ok(Until::Cgroup { path: until_path(path)? }),
        None => Err("until: a process, a network namespace or a control group is wanted".to_owned()),
    }
}

/// It is kept with the lease, and goes into each list.
fn until_path(path: String) -> Result<PathBuf, String> {
    if path.starts_with('/') && path.len() < UNTIL_PATH_MAX {
        return Ok(path.into());
    }
    Err(format!("until: a path of {} bytes; an absolute one of less than {UNTIL_PATH_MAX} is wanted", path.len()))
}

/// As long as the kernel takes one (`PATH_MAX`).
const UNTIL_PATH_MAX: usize = 4096;

/// None: the request says none.
pub(super) fn optional_driver(driver: i32) -> Result<Option<Driver>, String> {
    Ok(match known("driver", driver)? {
        v1::Driver::Unspecified => None,
        v1::Driver::Kernel => Some(Driver::Kernel),
        v1::Driver::VfioPci => Some(Driver::VfioPci),
        v1::Driver::None => Some(Driver::None),
    })
}

/// What a newer client may mean is not guessed.
fn known<T: TryFrom<i32>>(field: &str, value: i32) -> Result<T, String> {
    T::try_from(value).map_err(|_| format!("{field}: {value} is none that this release knows"))
}

pub(super) fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// linux/if_arp.h.
const ARPHRD_ETHER: u16 = 1;
/// linux/if_arp.h.
const ARPHRD_INFINIBAND: u16 = 32;
