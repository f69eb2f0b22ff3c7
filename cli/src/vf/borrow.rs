//! `ferrule vf acquire`, `hand-over` and `update`: what is asked for, and what is told of it.

use std::time::Duration;

use clap::{ArgGroup, Args};
use sriov_manager_client::v1::until::What;
use sriov_manager_client::{Client, v1};

use super::attributes::AttributeArgs;
use super::{VfCliError, json, told_steps};
use crate::text;

/// Options of `ferrule vf acquire`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").args(["vf", "pools"]).required(true).multiple(true))]
pub(super) struct AcquireArgs {
    /// Your own name for the lease; the same request again changes nothing. Several: all of them or none, of a pool
    #[arg(required = true, value_name = "LEASE")]
    ids: Vec<String>,
    /// The VF, by its address; with --pool, one of that pool
    #[arg(long, value_name = "ADDRESS")]
    vf: Option<String>,
    /// Any VF of a pool; given several times: of the first pool that has one
    #[arg(long = "pool", value_name = "NAME")]
    pools: Vec<String>,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    lease: LeaseArgs,
    /// Print the steps, and do none
    #[arg(long)]
    dry_run: bool,
    /// Even if the host itself uses the VF: its interface has an address, a bond or an XDP program
    #[arg(long)]
    force: bool,
}

/// Which VF of a pool.
#[derive(Debug, Args)]
struct PlaceArgs {
    /// A VF of this NUMA node, if there is one
    #[arg(long, value_name = "NODE")]
    numa: Option<u32>,
    /// Only a VF of this PF, by address or interface
    #[arg(long, value_name = "PF")]
    pf: Option<String>,
    /// Only a VF of this IOMMU group
    #[arg(long, value_name = "GROUP")]
    iommu_group: Option<u32>,
    /// Only a VF that is bound so already: kernel, vfio-pci, or none
    #[arg(long, value_name = "DRIVER")]
    bound_to: Option<v1::Driver>,
    /// Use the PF with the fewest free VFs first; otherwise that with the most
    #[arg(long)]
    pack: bool,
    /// Several: all of one PF
    #[arg(long)]
    same_pf: bool,
}

/// Options of `ferrule vf hand-over`.
#[derive(Debug, Args)]
pub(super) struct HandOverArgs {
    /// The lease that ends
    from: String,
    /// The lease that begins, with the same VF
    to: String,
    #[command(flatten)]
    lease: LeaseArgs,
    /// How long to wait for a process that has it open
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// What a lease is like, whichever VF it has.
#[derive(Debug, Args)]
struct LeaseArgs {
    /// For whom, in words [default: your user name, and `by hand`]
    #[arg(long, value_name = "TEXT")]
    tenant: Option<String>,
    /// In the name of this owner, who claimed the VF
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// The driver that the VF is to have: kernel, vfio-pci or none [default: the pool's, or kernel]
    #[arg(long, value_name = "DRIVER")]
    driver: Option<v1::Driver>,
    #[command(flatten)]
    until: UntilArgs,
    #[command(flatten)]
    attributes: AttributeArgs,
}

/// What ends a lease by itself.
#[derive(Debug, Args)]
struct UntilArgs {
    /// Give it back by itself when this process has ended
    #[arg(long = "until-pid", value_name = "PID", group = "until")]
    pid: Option<u32>,
    /// Give it back by itself when this network namespace is gone, as in /run/netns/pod
    #[arg(long = "until-netns", value_name = "FILE", group = "until")]
    netns: Option<String>,
    /// Give it back by itself when this control group is gone or empty
    #[arg(long = "until-cgroup", value_name = "DIR", group = "until")]
    cgroup: Option<String>,
}

/// Options of `ferrule vf update`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("news").args(["tenant", "pid", "netns", "cgroup", "until_released"])
    .required(true).multiple(true))]
pub(super) struct UpdateArgs {
    /// The lease, or the address of its VF
    lease: String,
    /// For whom it is, in words
    #[arg(long, value_name = "TEXT")]
    tenant: Option<String>,
    #[command(flatten)]
    until: UntilArgs,
    /// Nothing but a release ends it any more
    #[arg(long, group = "until")]
    until_released: bool,
}

impl UntilArgs {
    fn message(&self) -> Option<v1::Until> {
        let process = self.pid.map(|pid| What::Process(v1::Process { pid, start_time: 0 }));
        let namespace = self.netns.clone().map(What::NetworkNamespace);
        let what = process.or(namespace).or(self.cgroup.clone().map(What::Cgroup))?;
        Some(v1::Until { what: Some(what) })
    }
}

impl LeaseArgs {
    fn request(&self, id: &str) -> v1::AcquireRequest {
        v1::AcquireRequest {
            id: id.to_owned(),
            tenant: self.tenant.clone().unwrap_or_else(myself),
            owner: self.owner.clone().unwrap_or_default(),
            driver: self.driver.unwrap_or_default().into(),
            until: self.until.message(),
            attributes: Some(self.attributes.message()),
            ..Default::default()
        }
    }
}

/// Borrows VFs.
pub(super) async fn acquire(client: &mut Client, args: &AcquireArgs, json: bool) -> Result<String, VfCliError> {
    let PlaceArgs { numa, pf, iommu_group, bound_to, pack, same_pf } = &args.place;
    let order = if *pack { v1::Order::Pack } else { v1::Order::Spread };
    let place = v1::Place {
        numa: *numa,
        pf: pf.clone().unwrap_or_default(),
        order: order.into(),
        iommu_group: *iommu_group,
        bound_to: bound_to.unwrap_or_default().into(),
    };
    let request = |id: &String| v1::AcquireRequest {
        vf: args.vf.clone().unwrap_or_default(),
        pools: args.pools.clone(),
        place: Some(place.clone()),
        force: args.force,
        dry_run: args.dry_run,
        ..args.lease.request(id)
    };
    if let ([id], false) = (&args.ids[..], *same_pf) {
        let v1::AcquireResponse { vf, steps } = client.acquire(request(id)).await?.into_inner();
        return Ok(if json { json::acquired(vf.as_ref(), &steps) } else { told(vf.as_ref(), &steps, args.dry_run) });
    }
    let leases = args.ids.iter().map(request).collect();
    let request = v1::AcquireAllRequest { leases, same_pf: *same_pf, dry_run: args.dry_run };
    let acquired = client.acquire_all(request).await?.into_inner().leases;
    let one = |one: &v1::AcquireResponse| told(one.vf.as_ref(), &one.steps, args.dry_run);
    Ok(if json { json::acquired_all(&acquired) } else { acquired.iter().map(one).collect() })
}

/// Gives the VF of a lease to another one.
pub(super) async fn hand_over(client: &mut Client, args: &HandOverArgs, json: bool) -> Result<String, VfCliError> {
    let wait_ms = u32::try_from(args.wait.as_millis()).unwrap_or(u32::MAX);
    let request = v1::HandOverRequest { from: args.from.clone(), to: Some(args.lease.request(&args.to)), wait_ms };
    let v1::AcquireResponse { vf, steps } = client.hand_over(request).await?.into_inner();
    Ok(if json { json::acquired(vf.as_ref(), &steps) } else { told(vf.as_ref(), &steps, false) })
}

/// Says for whom a lease is, and what ends it.
pub(super) async fn update(client: &mut Client, args: &UpdateArgs, json: bool) -> Result<String, VfCliError> {
    let request = v1::UpdateRequest {
        lease: args.lease.clone(),
        tenant: args.tenant.clone().unwrap_or_default(),
        until: args.until.message(),
        until_released: args.until_released,
    };
    let lease = client.update(request).await?.into_inner().lease.unwrap_or_default();
    if json {
        return Ok(json::updated(&lease));
    }
    let end = match lease.until.and_then(|until| until.what) {
        None => "somebody releases it".to_owned(),
        Some(What::Process(process)) => format!("process {} has ended", process.pid),
        Some(What::NetworkNamespace(file)) => format!("the network namespace {} is gone", text::foreign(&file)),
        Some(What::Cgroup(directory)) => format!("the control group {} is gone or empty", text::foreign(&directory)),
    };
    let (id, tenant) = (text::foreign(&lease.id), text::foreign(&lease.tenant));
    Ok(format!("{}: lease {id}, for {tenant}, until {end}\n", lease.vf))
}

fn told(vf: Option<&v1::Vf>, steps: &[String], dry_run: bool) -> String {
    let Some(vf) = vf else { return told_steps(steps) };
    if dry_run {
        return format!("{}\n{}", vf.address, told_steps(steps));
    }
    let pool = vf.lease.as_ref().map(|lease| &lease.pool).filter(|pool| !pool.is_empty());
    let pool = pool.map_or_else(String::new, |pool| format!(" of the pool {}", text::foreign(pool)));
    let group = vf.iommu_group.map_or_else(String::new, |group| format!(", IOMMU group {group}"));
    let netdev = vf.netdevs.first().map_or_else(String::new, |netdev| format!(", interface {}", text::foreign(netdev)));
    let driver = if vf.driver.is_empty() { "no driver" } else { &vf.driver };
    let changed = if steps.is_empty() { ", nothing had to be done" } else { "" };
    format!("{}{pool}: yours, {driver}{group}{netdev}{changed}\n", vf.address)
}

fn myself() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    let name = user.map_or_else(|| nix::unistd::getuid().to_string(), |user| user.name);
    format!("{name}, by hand")
}
