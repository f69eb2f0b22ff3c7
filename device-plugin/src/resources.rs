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

use crate::allocate::{COST_TAKEN, Candidate};
use crate::config::{Config, DeviceType, Policy, ResourceConfig};
use crate::grants::{Grants, KnownLease, Listing, Tenant};
use crate::health::{FunctionHealth, Problem, judge};
use crate::host::{FunctionCondition, Host, HostView};
use crate::inventory::{Device, Inventory, Lists, SoftwareEnd};
use crate::lease_name::{LeaseName, OWNER};
use crate::pod_resources::POD;
use crate::pools::{Member, Pool, pools};
use crate::software::{Holder, Pair, PairState, Pairs, SoftwareEndpoint};

mod report;
#[cfg(test)]
mod tests;

/// Everything that is known, for everybody who asks.
#[derive(Clone, Debug)]
pub struct Resources(Arc<Mutex<State>>);

/// What the kubelet is told of a resource; none: nothing is known yet.
pub type DeviceList = Option<Arc<Vec<v1beta1::Device>>>;

#[derive(Debug, Default)]
struct State {
    config: Arc<Config>,
    /// Software endpoints, and how they are joined.
    pairs: Pairs,
    /// None: neither the manager nor the checkpoint told yet.
    inventory: Option<Inventory>,
    pools: Vec<Pool>,
    grants: Grants,
    pfs: FunctionHealth,
    /// Interfaces of PFs, by their addresses.
    pf_netdevs: BTreeMap<String, String>,
    /// Not asked for any more, and pods have devices of them.
    retired: Vec<Arc<ResourceConfig>>,
    /// Devices that a pod was refused, and why: by their ids.
    refused: BTreeMap<String, Refused>,
    /// Whether the manager has told of its VFs.
    is_managed: bool,
    /// Whether it tells of them now.
    is_followed: bool,
    /// Why it is not known what pods have.
    pods_problem: Option<String>,
    /// Why the configuration as it is now is not used: one line for each reason; none: it is.
    config_refused: Vec<String>,
    problems: BTreeMap<LeaseName, Problem>,
    lists: BTreeMap<String, watch::Sender<DeviceList>>,
    /// Theirs.
    names: watch::Sender<BTreeSet<String>>,
}

/// A device that a pod was refused.
#[derive(Clone, Debug)]
struct Refused {
    why: String,
    since: Instant,
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

impl Allotted {
    /// What its lease is called.
    pub fn lease_name(&self) -> LeaseName {
        LeaseName::new(&self.resource.name.to_string(), &self.member.device.id)
    }
}

impl Resources {
    /// Those of a configuration, of which nothing is known yet.
    pub fn new(config: Config) -> Self {
        let resources = Self(Arc::default());
        resources.set_config(config);
        resources
    }

    /// The configuration that is used.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.lock().config)
    }

    /// From now on there are these.
    pub fn set_config(&self, config: Config) {
        let mut state = self.lock();
        state.config_refused.clear();
        state.pairs.set_config(&config);
        let before = std::mem::replace(&mut state.config, Arc::new(config));
        state.retired.extend(before.resources.iter().cloned());
        state.refresh();
    }

    /// The configuration as it is now is not used, and the one before it stays: one line for each reason.
    pub fn refuse_config(&self, reasons: Vec<String>) {
        self.lock().config_refused = reasons;
    }

    /// Whether that is so.
    pub fn is_config_refused(&self) -> bool {
        !self.lock().config_refused.is_empty()
    }

    /// Takes over what the manager and sysfs tell. Returns what pods had and somebody else took back.
    pub fn set_inventory(&self, lists: &Lists, host: &HostView) -> Vec<LeaseName> {
        let list = &lists.kernel;
        let inventory = Inventory::new(lists, host);
        let mut state = self.lock();
        state.pf_netdevs = list.pfs.iter().map(|pf| (pf.address.clone(), pf.netdev.clone())).collect();
        let leases = list.vfs.iter().filter_map(|vf| vf.lease.as_ref()).chain(&list.lost);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let known = |lease: &v1::Lease| KnownLease {
            age: Duration::from_secs(now.saturating_sub(lease.since)),
            was_listed: lease.tenant.starts_with(POD),
        };
        let ours = leases.filter_map(|lease| Some((LeaseName::parse(lease)?, known(lease)))).collect();
        let ended = state.grants.note_leases(&ours, Instant::now());
        // A checkpoint has no node.
        state.is_managed |= list.node.is_some();
        let State { pfs, pf_netdevs, .. } = &mut *state;
        pfs.keep_only(|function| pf_netdevs.contains_key(function) || inventory.devices.contains_key(function));
        state.inventory = Some(inventory);
        state.refresh();
        ended
    }

    /// Looks how the PFs are, and the VFs that pods have; or all VFs.
    pub fn look_at_functions(&self, host: &Host, all_vfs: bool) {
        let wanted = self.lock().to_look_at(all_vfs);
        let found: Vec<(String, FunctionCondition)> = wanted
            .into_iter()
            .map(|(function, netdev)| (function.clone(), host.condition(&function, &netdev)))
            .collect();
        let mut state = self.lock();
        let now = Instant::now();
        let mut is_news = false;
        for (function, condition) in found {
            is_news |= state.pfs.note(&function, condition, now);
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

    /// The same now and from now on.
    pub fn watch_names(&self) -> watch::Receiver<BTreeSet<String>> {
        self.lock().names.subscribe()
    }

    /// Whether the manager has told of its VFs, or nobody needs any.
    pub fn is_managed(&self) -> bool {
        let state = self.lock();
        state.is_managed || !state.needs_manager()
    }

    /// Whether some resource has VFs.
    pub fn needs_manager(&self) -> bool {
        self.lock().needs_manager()
    }

    /// Whether there are software endpoints, or pods have some.
    pub fn has_software(&self) -> bool {
        let state = self.lock();
        state.config.resources.iter().any(|resource| resource.software.is_some())
            || state.pairs.in_use().next().is_some()
    }

    /// Whether it is known which wires a process before made.
    pub fn are_wires_known(&self) -> bool {
        self.lock().pairs.are_wires_known()
    }

    /// Pairs of software endpoints of which pods have something.
    pub fn pairs_in_use(&self) -> Vec<PairState> {
        let state = self.lock();
        state.pairs.in_use().map(|pair| state.pair_state(pair)).collect()
    }

    /// The pair of a software endpoint, as it stands; none: it is no endpoint's name.
    pub fn pair(&self, id: &str) -> Option<PairState> {
        let state = self.lock();
        state.pairs.of(id).map(|pair| state.pair_state(pair))
    }

    /// Takes over pairs whose wires are there, with what pods have of them.
    pub fn adopt(&self, states: &[PairState]) {
        let mut state = self.lock();
        let now = Instant::now();
        state.pairs.adopt(states.iter().map(|state| &state.pair));
        for PairState { pair, holders } in states {
            for (end, holder) in pair.ends.iter().zip(holders) {
                if let Holder::Pod(pod) = holder {
                    state.grants.adopt(&end.name, pod.clone(), now);
                }
            }
        }
        state.refresh();
    }

    /// Whether the manager tells of its VFs now.
    pub fn note_manager(&self, is_followed: bool) {
        self.lock().is_followed = is_followed;
    }

    /// Why it is not known what pods have, if it is not.
    pub fn note_pods_problem(&self, problem: Option<String>) {
        self.lock().pods_problem = problem;
    }

    /// Ids of all devices of all resources.
    pub fn device_ids(&self) -> BTreeSet<String> {
        self.lock().pools.iter().flat_map(|pool| pool.members.keys().cloned()).collect()
    }

    /// A pod was refused these: nobody is given them until it is known that they are to be had.
    pub fn refuse(&self, ids: &BTreeSet<String>, why: &str) {
        let mut state = self.lock();
        for id in ids {
            state.refused.insert(id.clone(), Refused { why: why.to_owned(), since: Instant::now() });
        }
        state.refresh();
    }

    /// Those that were refused a while ago, by a resource that has them.
    pub fn refused(&self) -> Vec<(Arc<ResourceConfig>, Member)> {
        let state = self.lock();
        let due = state.refused.iter().filter(|(_, refused)| refused.since.elapsed() >= REFUSED_FOR);
        let of = |id: &String| {
            let mut pools = state.pools.iter();
            pools.find_map(|pool| Some((Arc::clone(&pool.resource), pool.members.get(id)?.clone())))
        };
        due.filter_map(|(id, _)| of(id)).collect()
    }

    /// It is to be had again; or, with a reason, it is still not.
    pub fn retried(&self, id: &str, refusal: Option<String>) {
        let mut state = self.lock();
        match refusal {
            Some(why) => drop(state.refused.insert(id.to_owned(), Refused { why, since: Instant::now() })),
            None => drop(state.refused.remove(id)),
        }
        state.refresh();
    }

    /// It is not known whether it is to be had.
    pub fn retry_later(&self, id: &str) {
        if let Some(refused) = self.lock().refused.get_mut(id) {
            refused.since = Instant::now();
        }
    }

    /// What each of these devices of a resource costs when it is given to a pod, and how it is to be chosen. Those that it has not are
    /// left out.
    pub fn candidates(&self, resource: &str, ids: &[String]) -> (Option<Policy>, Vec<Candidate>) {
        let state = self.lock();
        let Some(pool) = state.pool(resource) else { return (None, Vec::new()) };
        let held_by = state.grants.by_device();
        let candidate = |id: &String| {
            let member = pool.members.get(id).filter(|member| !member.is_gone)?;
            let cost = state.cost(pool, resource, member, &held_by);
            Some(Candidate { id: id.clone(), card: member.device.card().to_owned(), cost })
        };
        (pool.resource.policy, ids.iter().filter_map(candidate).collect())
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
        let held_by = state.grants.by_device();
        for id in ids {
            if let Some(problem) = other_holder(&held_by, resource, id) {
                return Err(format!("{resource} cannot give {id} away: {problem}"));
            }
        }
        let allotted = |(resource, member): (Arc<ResourceConfig>, Member)| {
            let name = LeaseName::new(&resource.name.to_string(), &member.device.id);
            let is_listed = listing.is_some_and(|listing| listing.contains_key(&name));
            let tenant = state.grants.allocate(&name, is_listed, now);
            Allotted { resource, member, tenant }
        };
        let allotted: Vec<_> = members.into_iter().map(allotted).collect();
        if allotted.iter().any(|one: &Allotted| one.member.device.software().is_some()) {
            // What is left of a pair changes with each of its ends.
            state.refresh();
        } else {
            state.judge_again(ids);
        }
        Ok(allotted)
    }

    /// Changes what is known of grants; lists follow.
    pub fn with_grants<T>(&self, change: impl FnOnce(&mut Grants) -> T) -> T {
        let mut state = self.lock();
        let before = state.grants.generation();
        let result = change(&mut state.grants);
        if state.grants.generation() != before {
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
    fn needs_manager(&self) -> bool {
        let mut resources = self.config.resources.iter();
        resources.any(|resource| resource.software.is_none() && resource.device_type == DeviceType::NetDevice)
    }

    fn pair_state(&self, pair: &Arc<Pair>) -> PairState {
        let holder = |end: &SoftwareEndpoint| {
            if !self.grants.is_held(&end.name) {
                return Holder::Nobody;
            }
            Holder::Pod(self.grants.pod(&end.name).map(ToOwned::to_owned))
        };
        PairState { pair: Arc::clone(pair), holders: pair.ends.each_ref().map(holder) }
    }

    fn pool(&self, resource: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.resource.name.to_string() == resource)
    }

    /// Addresses, with the interface of those whose link matters.
    fn to_look_at(&self, all_vfs: bool) -> BTreeMap<String, String> {
        let held_by = self.grants.by_device();
        let devices = self.inventory.iter().flat_map(|inventory| inventory.devices.values());
        let vfs = devices.filter(|device| device.vf().is_some());
        let vfs = vfs.filter(|device| all_vfs || held_by.contains_key(device.id.as_str()));
        let mut wanted: BTreeMap<String, String> = vfs.map(|vf| (vf.id.clone(), String::new())).collect();
        wanted.extend(self.pf_netdevs.clone());
        wanted
    }

    /// 0: it is as it is to be; [`COST_TAKEN`]: it is another pod's, or is not to be had.
    fn cost(&self, pool: &Pool, resource: &str, member: &Member, held_by: &HeldBy<'_>) -> u8 {
        let device = &member.device;
        let is_others = other_holder(held_by, resource, &device.id).is_some();
        let is_ill = || judge(&pool.resource, member, false, &self.pfs).is_some();
        if is_others || self.refused.contains_key(&device.id) || is_ill() {
            return COST_TAKEN;
        }
        // Whoever had it last may not have let go of it yet.
        let was_ours = held_by.contains_key(device.id.as_str()) || device.vf().is_some_and(|vf| vf.lease.is_some());
        let must_be_bound = pool.resource.driver.is_some() && pool.resource.driver != device.present_driver();
        u8::from(must_be_bound) + 2 * u8::from(was_ours)
    }

    /// Makes everything anew from what is known.
    fn refresh(&mut self) {
        self.retire();
        let grants = &self.grants;
        self.pairs.note_held(|name| grants.is_held(name));
        let Some(inventory) = &self.inventory else { return };
        let held_by = self.grants.by_device();
        let is_held = |resource: &str, id: &str| is_held_by(&held_by, resource, id);
        let mut pools = pools(&self.config, &self.retired, inventory, &self.pools, is_held);
        for pool in &mut pools {
            let endpoints = self.pairs.of_resource(&pool.resource.name.to_string(), |name| grants.is_held(name));
            pool.members.extend(endpoints.into_iter().map(|(end, blocked)| {
                let device = Device::of_software(&end.name.device, SoftwareEnd { kind: end.kind, blocked });
                (end.name.device, Member { device: Arc::new(device), selector: 0, is_gone: false })
            }));
        }
        // What comes back under the address of one that has gone was refused to nobody.
        self.refused.retain(|id, _| pools.iter().any(|pool| pool.members.contains_key(id)));
        let mut problems = BTreeMap::new();
        for pool in &pools {
            let resource = pool.resource.name.to_string();
            let mut devices = Vec::with_capacity(pool.members.len());
            for (id, member) in &pool.members {
                let problem = self.problem(pool, &resource, member, &held_by);
                devices.push(told(&pool.resource, member, problem.is_none()));
                problems.extend(problem.map(|problem| (LeaseName::new(&resource, id), problem)));
            }
            if let Some(list) = self.lists.get(&resource) {
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

    /// These were given to pods, which changes nothing but what is told of them.
    fn judge_again(&mut self, ids: &BTreeSet<String>) {
        let held_by = self.grants.by_device();
        let mut problems = self.problems.clone();
        for pool in &self.pools {
            let resource = pool.resource.name.to_string();
            let mut changed = BTreeMap::new();
            for member in ids.iter().filter_map(|id| pool.members.get(id)) {
                let name = LeaseName::new(&resource, &member.device.id);
                let problem = self.problem(pool, &resource, member, &held_by);
                if problem.as_ref() != self.problems.get(&name) {
                    changed.insert(name.device.clone(), told(&pool.resource, member, problem.is_none()));
                    match problem {
                        Some(problem) => drop(problems.insert(name, problem)),
                        None => drop(problems.remove(&name)),
                    }
                }
            }
            if let Some(list) = self.lists.get(&resource).filter(|_| !changed.is_empty()) {
                list.send_if_modified(|list| replace(list, changed));
            }
        }
        log_changes(&self.problems, &problems);
        self.problems = problems;
    }

    /// What is wrong with a device of a resource; none: it is healthy.
    fn problem(&self, pool: &Pool, resource: &str, member: &Member, held_by: &HeldBy<'_>) -> Option<Problem> {
        let id = &member.device.id;
        let is_held = is_held_by(held_by, resource, id);
        let of_device = judge(&pool.resource, member, is_held, &self.pfs);
        if is_held {
            return of_device;
        }
        // The manager's list may not show the lease yet.
        let of_others = || other_holder(held_by, resource, id);
        let refused = || Some(Problem::Refused(self.refused.get(id)?.why.clone()));
        of_device.or_else(of_others).or_else(refused)
    }

    /// A resource that nobody asks for any more is kept for as long as a pod has something of it: its containers start again only
    /// while it is there. One of a process before is known by what it gave them: of what the kubelet alone tells, another plugin may
    /// serve the resource.
    fn retire(&mut self) {
        let asked_for: BTreeSet<String> =
            self.config.resources.iter().map(|resource| resource.name.to_string()).collect();
        let held: BTreeSet<String> = self.grants.by_resource().keys().map(|name| (*name).to_owned()).collect();
        let given: BTreeSet<String> = self.grants.given_resources().into_iter().map(str::to_owned).collect();
        let mut seen = asked_for.clone();
        // The newest of several of one name.
        self.retired.reverse();
        self.retired.retain(|resource| {
            let name = resource.name.to_string();
            held.contains(&name) && seen.insert(name)
        });
        for name in given.difference(&seen) {
            self.retired.extend(ResourceConfig::of_name(name).map(Arc::new));
        }
        let retired = self.retired.iter().map(|resource| resource.name.to_string());
        let all: BTreeSet<String> = asked_for.into_iter().chain(retired).collect();
        self.lists.retain(|name, _| all.contains(name));
        for name in &all {
            self.lists.entry(name.clone()).or_insert_with(|| watch::Sender::new(None));
        }
        self.names.send_if_modified(|names| {
            let is_news = *names != all;
            if is_news {
                *names = all;
            }
            is_news
        });
    }
}

/// By device: the resources by which pods have it.
type HeldBy<'a> = BTreeMap<&'a str, Vec<&'a str>>;

fn is_held_by(held_by: &HeldBy<'_>, resource: &str, id: &str) -> bool {
    held_by.get(id).is_some_and(|resources| resources.contains(&resource))
}

/// The other resource by which a pod has a device.
fn other_holder(held_by: &HeldBy<'_>, resource: &str, id: &str) -> Option<Problem> {
    let other = held_by.get(id)?.iter().find(|other| **other != resource)?;
    Some(Problem::OtherResource((*other).to_owned()))
}

/// Replaces devices of a list. Returns whether it is another one than before.
fn replace(list: &mut DeviceList, devices: BTreeMap<String, v1beta1::Device>) -> bool {
    let Some(list) = list else { return false };
    let mut is_news = false;
    for (id, device) in devices {
        if let Some(place) = list.iter().position(|there| there.id == id && *there != device) {
            Arc::make_mut(list)[place] = device;
            is_news = true;
        }
    }
    is_news
}

fn told(resource: &ResourceConfig, member: &Member, is_healthy: bool) -> v1beta1::Device {
    let numa = member.device.numa.filter(|_| !resource.exclude_topology);
    v1beta1::Device {
        id: member.device.id.clone(),
        health: if is_healthy { HEALTHY } else { UNHEALTHY }.to_owned(),
        topology: numa.map(|id| v1beta1::TopologyInfo { nodes: vec![v1beta1::NumaNode { id: i64::from(id) }] }),
    }
}

/// How long a device that was refused is given to nobody, before it is looked whether it is to be had.
const REFUSED_FOR: Duration = Duration::from_secs(30);

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
