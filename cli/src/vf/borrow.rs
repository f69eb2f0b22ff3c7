//! `ferrule vf acquire` and `hand-over`: what is asked for, and what is told of it.

use std::time::Duration;

use clap::{ArgGroup, Args};
use sriov_manager_client::v1::until::What;
use sriov_manager_client::{Client, v1};

use super::attributes::AttributeArgs;
use super::{VfCliError, json, told_steps};
use crate::text;

/// Options of `ferrule vf acquire`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").args(["vf", "pool"]).required(true).multiple(true))]
pub(super) struct AcquireArgs {
    /// Your own name for the lease; the same request again changes nothing. Several: all of them or none, of a pool
    #[arg(required = true, value_name = "LEASE")]
    ids: Vec<String>,
    /// The VF, by its address; with --pool, one of that pool
    #[arg(long, value_name = "ADDRESS")]
    vf: Option<String>,
    /// Any VF of a pool
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
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
    holder: Option<String>,
    /// In the name of this owner, who claimed the VF
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// The driver that the VF is to have: kernel, vfio-pci or none [default: the pool's, or kernel]
    #[arg(long, value_name = "DRIVER")]
    driver: Option<v1::Driver>,
    /// Give it back by itself when this process has ended
    #[arg(long, value_name = "PID", group = "until")]
    until_pid: Option<u32>,
    /// Give it back by itself when this network namespace is gone, as in /run/netns/pod
    #[arg(long, value_name = "FILE", group = "until")]
    until_netns: Option<String>,
    /// Give it back by itself when this control group is gone or empty
    #[arg(long, value_name = "DIR", group = "until")]
    until_cgroup: Option<String>,
    #[command(flatten)]
    attributes: AttributeArgs,
}

impl LeaseArgs {
    fn request(&self, id: &str) -> v1::AcquireRequest {
        let process = self.until_pid.map(|pid| What::Process(v1::Process { pid, start_time: 0 }));
        let namespace = self.until_netns.clone().map(What::NetworkNamespace);
        let what = process.or(namespace).or(self.until_cgroup.clone().map(What::Cgroup));
        v1::AcquireRequest {
            id: id.to_owned(),
            holder: self.holder.clone().unwrap_or_else(myself),
            owner: self.owner.clone().unwrap_or_default(),
            driver: self.driver.unwrap_or_default().into(),
            until: what.map(|what| v1::Until { what: Some(what) }),
            attributes: Some(self.attributes.message()),
            ..Default::default()
        }
    }
}

/// Borrows VFs.
pub(super) async fn acquire(client: &mut Client, args: &AcquireArgs, json: bool) -> Result<String, VfCliError> {
    let PlaceArgs { numa, pf, pack, same_pf } = &args.place;
    let order = if *pack { v1::Order::Pack } else { v1::Order::Spread };
    let place = v1::Place { numa: *numa, pf: pf.clone().unwrap_or_default(), order: order.into() };
    let request = |id: &String| v1::AcquireRequest {
        vf: args.vf.clone().unwrap_or_default(),
        pool: args.pool.clone().unwrap_or_default(),
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

fn told(vf: Option<&v1::Vf>, steps: &[String], dry_run: bool) -> String {
    let Some(vf) = vf else { return told_steps(steps) };
    if dry_run {
        return format!("{}\n{}", vf.address, told_steps(steps));
    }
    let group = vf.iommu_group.map_or_else(String::new, |group| format!(", IOMMU group {group}"));
    let netdev = vf.netdevs.first().map_or_else(String::new, |netdev| format!(", interface {}", text::foreign(netdev)));
    let driver = if vf.driver.is_empty() { "no driver" } else { &vf.driver };
    let changed = if steps.is_empty() { ", nothing had to be done" } else { "" };
    format!("{}: yours, {driver}{group}{netdev}{changed}\n", vf.address)
}

fn myself() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    let name = user.map_or_else(|| nix::unistd::getuid().to_string(), |user| user.name);
    format!("{name}, by hand")
}
