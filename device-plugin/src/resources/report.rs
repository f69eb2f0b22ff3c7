//! Everything that is known, in words: which resource has which device, and why the others do not.

use device_plugin_client as told;

use super::{Resources, State};
use crate::config::ResourceConfig;
use crate::inventory::Device;
use crate::lease_name::LeaseName;
use crate::pod_resources::POD;
use crate::pools::{Member, Pool, misfit};

impl Resources {
    /// The whole of it. `is_registered`: whether the kubelet has a resource's list.
    pub fn report(&self, is_registered: impl Fn(&str) -> bool) -> told::Report {
        let state = self.lock();
        let of_node = state.inventory.iter().flat_map(|inventory| inventory.devices.values());
        let members = state.pools.iter().flat_map(|pool| pool.members.values().map(|member| &member.device));
        let devices = of_node.chain(members.filter(|device| device.software().is_some()));
        told::Report {
            problems: state.own_problems(),
            resources: state.pools.iter().map(|pool| state.told_resource(pool, &is_registered)).collect(),
            devices: devices.map(|device| state.told_device(device)).collect(),
            pfs: state.pf_netdevs.iter().map(|(pf, netdev)| (pf.clone(), netdev.clone())).collect(),
            left_out: state.config.left_out.clone(),
        }
    }
}

impl State {
    fn own_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.needs_manager() {
            // Nothing is asked of it.
        } else if !self.is_managed {
            problems.push("sriov-manager has told of no VF yet: start it, or look at its log".to_owned());
        } else if !self.is_followed {
            problems.push(
                "sriov-manager is away: what it told last is shown, and no VF is lent until it is back".to_owned(),
            );
        }
        problems.extend(self.pods_problem.clone());
        let refused = self.config_refused.iter();
        problems.extend(
            refused.map(|why| format!("the configuration is refused, and the one before it is in force: {why}")),
        );
        problems
    }

    fn told_resource(&self, pool: &Pool, is_registered: &impl Fn(&str) -> bool) -> told::Resource {
        let name = pool.resource.name.to_string();
        told::Resource {
            driver: pool.resource.driver.map(|driver| driver.word().to_owned()),
            is_registered: is_registered(&name),
            members: pool.members.values().map(|member| self.told_member(&name, member)).collect(),
            name,
        }
    }

    fn told_member(&self, resource: &str, member: &Member) -> told::Member {
        let name = LeaseName::new(resource, &member.device.id);
        let of_lease = || {
            let lease = member.device.vf()?.lease.as_ref()?;
            LeaseName::parse(lease).filter(|lease| *lease == name)?;
            Some(lease.tenant.clone()).filter(|tenant| tenant.starts_with(POD))
        };
        let pod = || self.grants.pod(&name).map(ToOwned::to_owned).or_else(of_lease);
        let is_ready = member.device.vf().is_none() || self.grants.unready(&name).is_none();
        let problem = self.problems.get(&name);
        told::Member {
            device: name.device.clone(),
            holder: self.grants.is_held(&name).then(|| told::Holder { pod: pod(), is_ready }),
            problem: problem
                .map(|problem| told::Problem { word: problem.word().to_owned(), text: problem.to_string() }),
        }
    }

    fn told_device(&self, device: &Device) -> told::Device {
        let mut left_out = Vec::new();
        let mut taken_by: Option<&ResourceConfig> = None;
        for pool in &self.pools {
            if pool.members.contains_key(&device.id) {
                taken_by = taken_by.or(Some(&pool.resource));
                continue;
            }
            let why = why_not(&pool.resource, device, taken_by);
            left_out.push(told::LeftOut { resource: pool.resource.name.to_string(), why });
        }
        told::Device {
            id: device.id.clone(),
            kind: device.source.word().to_owned(),
            driver: device.driver.clone(),
            netdevs: device.netdevs.clone(),
            left_out,
        }
    }
}

/// `taken_by`: the first resource further up that has it.
fn why_not(resource: &ResourceConfig, device: &Device, taken_by: Option<&ResourceConfig>) -> String {
    if resource.software.is_some() || device.software().is_some() {
        return "software endpoints are of their own resource, which has nothing else".to_owned();
    }
    let reasons: Vec<_> = resource
        .selectors
        .iter()
        .map(|selector| misfit(resource, selector, device).map(|misfit| misfit.words(selector, device)))
        .collect();
    if let Some(earlier) = taken_by.filter(|_| reasons.iter().any(Option::is_none)) {
        return format!(
            "it fits, and {} is further up in the configuration and has it; only resources that both name a `driver` share VFs",
            earlier.name
        );
    }
    match reasons.as_slice() {
        [] => "the configuration has this resource no more; it is there until pods let go of what they have".to_owned(),
        [Some(reason)] => reason.clone(),
        several => {
            let numbered = several
                .iter()
                .enumerate()
                .filter_map(|(number, reason)| Some(format!("selector {}: {}", number + 1, reason.as_ref()?)));
            numbered.collect::<Vec<_>>().join("; ")
        }
    }
}
