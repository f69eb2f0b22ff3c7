//! The node's NIC: a made-up one, with an `sriov-manager` that owns its VFs.
//!
//! The manager is the daemon itself, on a tree of files with a kernel that behaves like the real one towards it. The nodes of VFIO groups are copies of
//! `/dev/null`, so that a runtime can put them into containers.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ferrule_daemon::ApiSocket;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use sriov_manager::daemon::{Daemon, DaemonOptions};
use sriov_manager::fake::FakeNode;
use sriov_manager::kernel::Kernel as _;
use sriov_manager::policy::{NumVfs, PfSelector, Policies, Pool};
use sriov_manager_client::{SOCKET_DEFAULT, connect, v1};
use tokio::runtime::Runtime;

/// A NIC and its manager.
pub struct Hardware {
    /// The NIC. Its PF 0 has [`VFS`] VFs.
    pub nic: FakeNode,
    runtime: Runtime,
    manager: Option<Daemon>,
}

impl Hardware {
    /// A NIC whose VFs are made, and a manager that serves at its usual socket.
    pub fn start() -> Result<Self> {
        let runtime = Runtime::new().context("make a runtime")?;
        let mut hardware = Self { nic: FakeNode::new(1, 7), runtime, manager: None };
        hardware.start_manager()?;
        make_node("vfio")?;
        hardware.make_group_nodes()?;
        Ok(hardware)
    }

    /// Removes all VFs and makes them again, under a manager that is started again.
    pub fn remake_vfs(&mut self) -> Result<()> {
        self.stop_manager();
        let file = self.nic.sysfs().file(self.nic.pf(0), "sriov_numvfs");
        self.nic.kernel().write(&file, "0").map_err(|error| anyhow!("remove all VFs: {error}"))?;
        self.start_manager()?;
        self.make_group_nodes()
    }

    fn make_group_nodes(&self) -> Result<()> {
        for index in 0..VFS {
            let group = self.nic.sysfs().iommu_group(self.nic.vf(0, index)).context("a VF has a group")?;
            make_node(&group.to_string())?;
        }
        Ok(())
    }

    /// Starts the manager again.
    pub fn start_manager(&mut self) -> Result<()> {
        let pfs = vec![PfSelector { vendor: Some(0x8086), ..PfSelector::default() }];
        let pool = Pool { name: "all".into(), pfs, num_vfs: Some(NumVfs::Exactly(VFS)), ..Pool::default() };
        let parts = self.nic.options();
        let options = DaemonOptions {
            sysfs: parts.sysfs,
            kernel: parts.kernel,
            state: parts.state,
            socket: ApiSocket::at(SOCKET_DEFAULT),
            metrics: Some(MANAGER_METRICS),
            // The files tell of no change.
            rescan: Duration::from_millis(100),
            policies: Policies { pools: vec![pool] },
            file: None,
            timeouts: parts.timeouts,
            observer: None,
        };
        self.manager = Some(self.runtime.block_on(Daemon::start(options)).context("start the manager")?);
        Ok(())
    }

    /// Stops the manager, if it runs.
    pub fn stop_manager(&mut self) {
        if let Some(manager) = self.manager.take() {
            self.runtime.block_on(manager.stop());
        }
    }

    /// Whether the manager serves.
    pub fn is_managed(&self) -> bool {
        self.manager.is_some()
    }

    /// What the manager says of all PFs and VFs.
    pub fn list(&self) -> Result<v1::ListResponse> {
        self.runtime.block_on(async {
            let mut client = connect(SOCKET_DEFAULT.as_ref()).await.context("connect to the manager")?;
            Ok(client.list(v1::ListRequest::default()).await.context("list VFs")?.into_inner())
        })
    }

    /// One VF of it.
    pub fn vf(&self, address: &str) -> Result<v1::Vf> {
        let found = self.list()?.vfs.into_iter().find(|vf| vf.address == address);
        found.with_context(|| format!("the manager does not know {address}"))
    }

    /// The folder that has its `sys`, `proc` and `dev`.
    pub fn root(&self) -> PathBuf {
        self.nic.sysfs().path("")
    }

    /// Where asynchronous questions are asked.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }
}

fn make_node(name: &str) -> Result<()> {
    let path = PathBuf::from("/dev/vfio").join(name);
    if fs::exists(&path)? {
        return Ok(());
    }
    let (kind, mode) = (SFlag::S_IFCHR, Mode::from_bits_truncate(0o666));
    mknod(&path, kind, mode, makedev(1, 3)).with_context(|| format!("make the device node {}", path.display()))
}

/// Where its manager's metrics are.
pub const MANAGER_METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9091);

/// How many VFs there are.
pub const VFS: u32 = 4;
