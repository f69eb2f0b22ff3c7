//! Our own form: a list of pools.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use ferrule_daemon::settings::{Field, Table};

use super::source;
use crate::Driver;
use crate::num_vfs::NumVfs;
use crate::policy::{PfSelector, Policies, Pool};

/// Reads the items of `pools:`.
pub(super) fn read(entries: &[Field<'_>]) -> Policies {
    let mut lines = BTreeMap::new();
    let mut pools = Vec::new();
    for entry in entries {
        let pool = read_pool(entry);
        let line = entry.line_of("name");
        if let Some(first) = lines.get(&pool.name).filter(|_| !pool.name.is_empty()) {
            entry.wrong_below(
                "name",
                format!("the pool `{}` is on line {first} already; rename one of them", pool.name),
            );
        }
        lines.entry(pool.name.clone()).or_insert(line);
        pools.push(pool);
    }
    Policies { pools }
}

fn read_pool(field: &Field<'_>) -> Pool {
    let Some(table) = field.table(&["name", "pfs", "num_vfs", "driver", "mtu", "kernel_driver", "who"]) else {
        return Pool::default();
    };
    let name = table.required("name", "a name that no other pool has");
    let name = name.as_ref().and_then(|field| Some((field, field.text()?)));
    if let Some((field, name)) = name
        && (name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control))
    {
        field.wrong(format!("a name of 1 to {NAME_MAX} bytes without control characters is wanted"));
    }
    let pfs = table.required("pfs", "a list of PFs, as in `[{ name: ens1f0 }]`");
    let items = pfs.as_ref().and_then(Field::items).unwrap_or_default();
    if let Some(pfs) = pfs.filter(|_| items.is_empty()) {
        pfs.wrong("at least one PF is wanted, as in `[{ name: ens1f0 }]`");
    }
    let driver = table.optional("driver").and_then(|field| field.parse());
    let mtu = table.optional("mtu").and_then(|field| field.number(MTU_RANGE));
    if let (Some(field), Some(_)) = (table.optional("mtu"), driver.filter(|driver| *driver != Driver::Kernel)) {
        field.wrong("only a VF with the driver `kernel` has an interface whose MTU can be set");
    }
    let who = table.optional("who").and_then(|field| field.items());
    Pool {
        name: name.map(|(_, name)| name.to_owned()).unwrap_or_default(),
        pfs: items.iter().filter_map(read_selector).collect(),
        num_vfs: count(&table),
        driver,
        mtu,
        kernel_driver: table.optional("kernel_driver").and_then(|field| vf_driver_name(&field)),
        who: who.map(|items| items.iter().filter_map(Field::parse).collect()),
        source: source(field, &["name", "pfs", "num_vfs", "mtu"].map(|name| (name, name))),
    }
}

fn read_selector(field: &Field<'_>) -> Option<PfSelector> {
    let table = field.table(&["name", "address", "vendor", "device", "driver", "vfs", "num_vfs"])?;
    let hex = |key| table.optional(key).and_then(|field| hex_id(&field));
    let selector = PfSelector {
        name: table.optional("name").and_then(|field| field.text()).map(ToOwned::to_owned),
        address: table.optional("address").and_then(|field| field.parse()),
        vendor: hex("vendor"),
        device: hex("device"),
        driver: table.optional("driver").and_then(|field| driver_name(&field)),
        vfs: table.optional("vfs").and_then(|field| ranges(&field, field.text()?)),
        num_vfs: count(&table),
        policy: None,
    };
    let says_something =
        ["name", "address", "vendor", "device", "driver"].iter().any(|key| table.optional(key).is_some());
    if !says_something {
        field.wrong("a PF is named by at least one of name, address, vendor, device, driver");
    }
    Some(selector)
}

/// How many VFs a PF is to have.
fn count(table: &Table<'_>) -> Option<NumVfs> {
    table.optional("num_vfs").and_then(|field| field.number(0..=VFS_MAX)).map(NumVfs::Exactly)
}

/// Four hexadecimal digits, with or without `0x`.
pub(super) fn hex_id(field: &Field<'_>) -> Option<u32> {
    let text = field.text()?;
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let good = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = good.then(|| u32::from_str_radix(digits, 16).ok()).flatten();
    if id.is_none() {
        field.wrong(format!("`{text}`; four hexadecimal digits are wanted, as in `8086` (quote them)"));
    }
    id
}

/// A name that can be a directory's: it becomes part of a path.
pub(super) fn driver_name(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    let good = !text.is_empty()
        && text.len() <= DRIVER_NAME_MAX
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if !good {
        field.wrong(format!("`{text}`; the name of a driver is wanted, as in `igbvf`"));
    }
    good.then(|| text.to_owned())
}

/// The name of a kernel's driver for VFs, as the kernel has it now.
pub(super) fn vf_driver_name(field: &Field<'_>) -> Option<String> {
    let name = driver_name(field)?;
    // Renamed in Linux 4.20.
    Some(if name == "i40evf" { "iavf".to_owned() } else { name })
}

/// `3`, `0-3` or `0,2-4,7`, both ends included.
pub(super) fn ranges(field: &Field<'_>, text: &str) -> Option<BTreeSet<u32>> {
    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|&number| u64::from(number) < VFS_MAX);
    let mut all = BTreeSet::new();
    for part in text.split(',') {
        let range = match part.split_once('-') {
            Some((first, last)) => number(first).zip(number(last)).filter(|(first, last)| first <= last),
            None => number(part).map(|number| (number, number)),
        };
        let Some((first, last)) = range else {
            field.wrong(format!("`{text}`; numbers of VFs are wanted, as in `0-3` or `0,2-4,7`"));
            return None;
        };
        all.extend(first..=last);
    }
    Some(all)
}

/// Of a file system's name for a pool: longer ones are a mistake.
const NAME_MAX: usize = 128;
/// `sriov_numvfs` is 16 bits wide (PCIe 6.0, 9.3.3.5).
pub(super) const VFS_MAX: u64 = 65535;
/// Of an interface, as the API takes it.
pub(super) const MTU_RANGE: RangeInclusive<u64> = 68..=65535;
/// `driver_override` takes less than a page; no driver's name is near it.
const DRIVER_NAME_MAX: usize = 64;
