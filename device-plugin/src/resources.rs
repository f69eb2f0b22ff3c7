//! Every resource with its devices as the kubelet is to see them, and what pods have of them.
//!
//! News come from all sides: the manager's list, sysfs, the configuration, the kubelet's own calls. Each changes what is known, and from
//! that all lists are made anew; those that are not as they were go to the kubelet at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ferrule_kubelet::{HEALTHY, UNHEALTHY, v1beta1};
use sriov_manager_client::v1;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::{Config, ResourceConfig};
use crate::grants::{Grants, Listing, Tenant};
use crate::health::{PfHealth, Problem, judge};
use crate::host::{Host, HostView, PfCondition};
use crate::inventory::{Inventory, Lists};
use crate::leases::{LeaseName, OWNER};
use crate::pools::{Member, Pool, pools};

/// Everything that is known, for everybody who asks.
#[derive(Clone, Debug)]
pub struct Resources(Arc<Mutex<State>>);

/// What the kubelet is told of a resource; none: nothing is known yet.
pub type DeviceList = Option<Arc<Vec<v1beta1::Device>>>;

#[derive(Debug, Default)]
struct State {
    config: Arc<Config>,
    /// None: neither the manager nor the checkpoint told yet.
    inventory: Option<Inventory>,
    pools: Vec<Pool>,
    grants: Grants,
    pfs: PfHealth,
    /// Interfaces of PFs, by their addresses.
    pf_netdevs: BTreeMap<String, String>,
    problems: BTreeMap<LeaseName, Problem>,
    lists: BTreeMap<String, watch::Sender<DeviceList>>,
}

/// A device that the kubelet gives to a pod.
#[derive(Clone, Debug)]
pub struct Allotted {
    /// Its resource.
    pub resource: Arc<ResourceConfig>,
    /// The device.
    pub member: Member,
    /// For whom.
    pub tenant: Tenant,
}

impl Resources {
    /// Those of a configuration, of which nothing is known yet.
    pub fn new(config: Config) -> Self {
        let resources = Self(Arc::default());
        resources.set_config(config);
        resources
    }

    /// From now on there are these.
    pub fn set_config(&self, config: Config) {
        let mut state = self.lock();
        let names: BTreeSet<String> = config.resources.iter().map(|resource| resource.name.to_string()).collect();
        state.lists.retain(|name, _| names.contains(name));
        for name in names {
            state.lists.entry(name).or_insert_with(|| watch::Sender::new(None));
        }
        state.config = Arc::new(config);
        state.refresh();
    }

    /// Takes over what the manager and sysfs tell.
    pub fn set_inventory(&self, lists: &Lists, host: &HostView) {
        let mut state = self.lock();
        let list = &lists.kernel;
        state.pf_netdevs = list.pfs.iter().map(|pf| (pf.address.clone(), pf.netdev.clone())).collect();
        let leases = list.vfs.iter().filter_map(|vf| vf.lease.as_ref()).chain(&list.lost);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let age = |lease: &v1::Lease| Duration::from_secs(now.saturating_sub(lease.since));
        let ours = leases.filter_map(|lease| Some((LeaseName::parse(lease)?, age(lease)))).collect();
        state.grants.note_leases(&ours, Instant::now());
        state.inventory = Some(Inventory::new(lists, host));
        state.refresh();
    }

    /// Looks how the PFs are.
    pub fn look_at_pfs(&self, host: &Host) {
        let pfs = self.lock().pf_netdevs.clone();
        let found: Vec<(String, PfCondition)> =
            pfs.into_iter().map(|(pf, netdev)| (pf.clone(), host.pf_condition(&pf, &netdev))).collect();
        let mut state = self.lock();
        let now = Instant::now();
        let mut is_news = false;
        for (pf, condition) in found {
            is_news |= state.pfs.note(&pf, condition, now);
        }
        if is_news {
            state.refresh();
        }
    }

    /// What the kubelet is to be told of a resource, now and from now on. None: there is no such resource.
    pub fn list(&self, resource: &str) -> Option<watch::Receiver<DeviceList>> {
        self.lock().lists.get(resource).map(watch::Sender::subscribe)
    }

    /// Names of all resources.
    pub fn names(&self) -> Vec<String> {
        self.lock().lists.keys().cloned().collect()
    }

    /// Whether anything is known of devices.
    pub fn is_known(&self) -> bool {
        self.lock().inventory.is_some()
    }

    /// Devices of a resource that a kubelet names. The error names the first that it was never told of, or that is gone.
    pub fn members(
        &self,
        resource: &str,
        ids: &BTreeSet<String>,
    ) -> Result<Vec<(Arc<ResourceConfig>, Member)>, String> {
        let state = self.lock();
        let Some(pool) = state.pool(resource) else { return Err(format!("there is no resource {resource}")) };
        let member = |id: &String| match pool.members.get(id) {
            Some(member) if member.is_gone => Err(format!("{resource}: the device {id} is not there any more")),
            Some(member) => Ok((Arc::clone(&pool.resource), member.clone())),
            None => Err(format!("{resource} has no device {id}; it has {}", pool.members.len())),
        };
        ids.iter().map(member).collect()
    }

    /// The kubelet gives devices to a pod: from now on it has them, and other resources do not.
    pub fn allocate(
        &self,
        resource: &str,
        ids: &BTreeSet<String>,
        listing: Option<&Listing>,
    ) -> Result<Vec<Allotted>, String> {
        let members = self.members(resource, ids)?;
        let mut state = self.lock();
        let now = Instant::now();
        let allotted = |(resource, member): (Arc<ResourceConfig>, Member)| {
            let name = LeaseName::new(&resource.name.to_string(), &member.device.id);
            let is_listed = listing.is_some_and(|listing| listing.contains_key(&name));
            let tenant = state.grants.allocate(&name, is_listed, now);
            Allotted { resource, member, tenant }
        };
        let allotted = members.into_iter().map(allotted).collect();
        state.refresh();
        Ok(allotted)
    }

    /// Changes what is known of grants; lists follow.
    pub fn with_grants<T>(&self, change: impl FnOnce(&mut Grants) -> T) -> T {
        let mut state = self.lock();
        let before: Vec<LeaseName> = state.grants.names().cloned().collect();
        let result = change(&mut state.grants);
        if !state.grants.names().eq(&before) {
            state.refresh();
        }
        result
    }

    /// VFs that are ours alone to lend: those of all resources, but none that somebody else has claimed.
    pub fn to_claim(&self) -> BTreeSet<String> {
        let state = self.lock();
        let members = state.pools.iter().flat_map(|pool| pool.members.values()).filter(|member| !member.is_gone);
        let is_ours = |member: &&Member| member.device.vf().is_some_and(|vf| vf.owner.is_empty() || vf.owner == OWNER);
        members.filter(is_ours).map(|member| member.device.id.clone()).collect()
    }

    /// All resources with their devices, what is wrong with them, and which are held: for metrics.
    pub fn shown(&self) -> Vec<Shown> {
        let state = self.lock();
        let by_resource = state.grants.by_resource();
        let shown = |pool: &Pool| {
            let resource = pool.resource.name.to_string();
            let held = by_resource.get(resource.as_str()).map_or(0, BTreeSet::len);
            let problem = |id: &String| {
                let problem = state.problems.get(&LeaseName::new(&resource, id))?;
                Some((id.clone(), problem.clone()))
            };
            let problems = pool.members.keys().filter_map(problem).collect();
            Shown { devices: pool.members.len(), held, problems, resource: resource.clone() }
        };
        state.pools.iter().map(shown).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A resource, for metrics.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its name.
    pub resource: String,
    /// How many devices it has.
    pub devices: usize,
    /// How many of them pods have.
    pub held: usize,
    /// What is wrong with devices, by their ids.
    pub problems: Vec<(String, Problem)>,
}

impl State {
    fn pool(&self, resource: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.resource.name.to_string() == resource)
    }

    /// Makes everything anew from what is known.
    fn refresh(&mut self) {
        let Some(inventory) = &self.inventory else { return };
        let grants = &self.grants;
        let is_held = |resource: &str, id: &str| grants.is_held(&LeaseName::new(resource, id));
        let pools = pools(&self.config, inventory, &self.pools, is_held);
        let names: Vec<String> = pools.iter().map(|pool| pool.resource.name.to_string()).collect();
        let mut problems = BTreeMap::new();
        for (pool, resource) in pools.iter().zip(&names) {
            let mut devices = Vec::with_capacity(pool.members.len());
            for (id, member) in &pool.members {
                let name = LeaseName::new(resource, id);
                let has_other = || other_holder(grants, &names, &name);
                let is_held = grants.is_held(&name);
                let problem = judge(&pool.resource, member, is_held, &self.pfs);
                // The manager's list may not show the lease yet.
                let problem = problem.or_else(|| if is_held { None } else { has_other() });
                devices.push(told(&pool.resource, member, problem.is_none()));
                problems.extend(problem.map(|problem| (name, problem)));
            }
            if let Some(list) = self.lists.get(resource) {
                list.send_if_modified(|before| {
                    let is_news = before.as_deref() != Some(&devices);
                    if is_news {
                        *before = Some(Arc::new(devices));
                    }
                    is_news
                });
            }
        }
        log_changes(&self.problems, &problems);
        (self.pools, self.problems) = (pools, problems);
    }
}

/// The other resource by which a pod has a device.
fn other_holder(grants: &Grants, resources: &[String], name: &LeaseName) -> Option<Problem> {
    let mut others = resources.iter().filter(|other| **other != name.resource);
    others.find(|other| grants.is_held(&LeaseName::new(other, &name.device))).cloned().map(Problem::OtherResource)
}

fn told(resource: &ResourceConfig, member: &Member, is_healthy: bool) -> v1beta1::Device {
    let numa = member.device.numa.filter(|_| !resource.exclude_topology);
    v1beta1::Device {
        id: member.device.id.clone(),
        health: if is_healthy { HEALTHY } else { UNHEALTHY }.to_owned(),
        topology: numa.map(|id| v1beta1::TopologyInfo { nodes: vec![v1beta1::NumaNode { id: i64::from(id) }] }),
    }
}

/// A device that pods use by another resource is no news; what is wrong is.
fn log_changes(before: &BTreeMap<LeaseName, Problem>, now: &BTreeMap<LeaseName, Problem>) {
    let is_told = |problem: &Problem| !matches!(problem, Problem::OtherResource(_));
    for (name, problem) in now.iter().filter(|(name, problem)| is_told(problem) && before.get(name) != Some(problem)) {
        warn!(resource = name.resource, device = name.device, "unhealthy: {problem}");
    }
    for name in before.iter().filter(|(_, problem)| is_told(problem)).map(|(name, _)| name) {
        if !now.contains_key(name) {
            info!(resource = name.resource, device = name.device, "healthy again");
        }
    }
}
