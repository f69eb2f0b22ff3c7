//! From the VF that is to the VF that is wanted: a list of steps. Nothing is touched here.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::address::{PciAddress, is_userspace_driver};
use crate::attributes::{Attributes, Mac, VfChange, VfReport};
use crate::kernel::Interface;

/// One thing that is done to a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Take a function from its driver.
    Unbind {
        /// The function.
        function: PciAddress,
        /// The driver that it is bound to.
        driver: String,
    },
    /// Reset the function alone (FLR).
    Reset {
        /// The function.
        function: PciAddress,
    },
    /// Say which driver alone may have a function; none: any that knows its ids.
    Override {
        /// The function.
        function: PciAddress,
        /// The driver.
        driver: Option<String>,
    },
    /// Have the kernel look for a driver.
    Probe {
        /// The function.
        function: PciAddress,
        /// The driver that it must find; none: any but vfio-pci.
        driver: Option<String>,
    },
    /// Tell a PF something about a VF.
    Set {
        /// The VF.
        function: PciAddress,
        /// The PF.
        pf: PciAddress,
        /// The VF's number there.
        index: u32,
        /// What.
        change: VfChange,
    },
    /// Have a PF forget the address that it gave a VF, which is to tell it all zeros.
    ClearMac {
        /// The VF.
        function: PciAddress,
        /// The PF.
        pf: PciAddress,
        /// The VF's number there.
        index: u32,
        /// What a driver is told that refuses zeros: an address that nobody chose.
        instead: Option<Mac>,
    },
    /// Set the MTU of a VF's interface.
    Mtu {
        /// The VF.
        function: PciAddress,
        /// Bytes.
        mtu: u32,
    },
    /// Whether drivers are looked for when VFs appear.
    Autoprobe {
        /// The PF.
        pf: PciAddress,
        /// Whether.
        on: bool,
    },
    /// Set the number of VFs.
    Count {
        /// The PF.
        pf: PciAddress,
        /// How many.
        count: u32,
    },
}

impl Step {
    /// The function whose user it would disturb.
    pub fn disturbs(&self) -> Option<PciAddress> {
        match self {
            Self::Unbind { function, .. } | Self::Reset { function } => Some(*function),
            _ => None,
        }
    }

    /// Whether it only sets something of a function, which stays on its driver: done again it is the same.
    pub fn is_setting(&self) -> bool {
        matches!(self, Self::Set { .. } | Self::ClearMac { .. } | Self::Mtu { .. })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unbind { function, driver } => write!(f, "unbind {function} from {driver}"),
            Self::Reset { function } => write!(f, "reset {function}"),
            Self::Override { function, driver: Some(driver) } => write!(f, "reserve {function} for {driver}"),
            Self::Override { function, driver: None } => write!(f, "let any driver have {function}"),
            Self::Probe { function, driver: Some(driver) } => write!(f, "bind {function} to {driver}"),
            Self::Probe { function, driver: None } => write!(f, "bind {function} to the driver that knows it"),
            Self::Set { function, pf, index, change } => {
                write!(f, "set {change} of {function} (VF {index} of {pf})")
            }
            Self::ClearMac { function, pf, index, .. } => {
                write!(f, "clear the mac of {function} (VF {index} of {pf})")
            }
            Self::Mtu { function, mtu } => write!(f, "set mtu {mtu} of {function}"),
            Self::Autoprobe { pf, on: true } => write!(f, "let new VFs of {pf} have drivers"),
            Self::Autoprobe { pf, on: false } => write!(f, "keep drivers away from new VFs of {pf}"),
            Self::Count { pf, count } => write!(f, "set the number of VFs of {pf} to {count}"),
        }
    }
}

/// What a function is to be bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// No driver.
    None,
    /// The driver of that name.
    To(String),
    /// Whichever driver of the kernel knows its ids.
    Found,
}

impl Binding {
    /// To go back to a driver that was seen.
    pub fn to(driver: Option<&str>) -> Self {
        driver.map_or(Self::None, |driver| Self::To(driver.to_owned()))
    }

    fn holds(&self, driver: Option<&str>) -> bool {
        match self {
            Self::None => driver.is_none(),
            Self::To(wanted) => driver == Some(wanted),
            Self::Found => driver.is_some_and(|driver| !is_userspace_driver(driver)),
        }
    }
}

/// A VF as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    /// The VF.
    pub vf: PciAddress,
    /// Its PF.
    pub pf: PciAddress,
    /// Its number there.
    pub index: u32,
    /// Its driver.
    pub driver: Option<String>,
    /// What the PF says of it.
    pub report: VfReport,
    /// The address that is made for it when it needs one; none: its PF's own is not known.
    pub derived_mac: Option<Mac>,
    /// The address that its PF was made with; none: it did not tell.
    pub card: Option<Mac>,
    /// The MTU of its interface.
    pub mtu: Option<u32>,
    /// The interface of its PF, which was asked a moment ago; none: it has none here.
    pub interface: Option<Interface>,
    /// Drivers of the VFs that share its IOMMU group.
    pub members: BTreeMap<PciAddress, Option<String>>,
}

/// A VF as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What it is bound to.
    pub binding: Binding,
    /// What the PF is to say of it, and the MTU of its interface.
    pub attributes: Attributes,
    /// What the others of its IOMMU group are bound to.
    pub members: BTreeMap<PciAddress, Binding>,
    /// Whether it is cleaned on the way, whatever it is bound to: taken from its driver, reset, and free of a
    /// reservation for a driver.
    pub fresh: bool,
}

/// The steps from `current` to `target`; none when there is nothing to do.
///
/// The PF is told before a driver is bound: a driver reads the address when it starts. For the same reason a new
/// address needs a driver of the kernel to start again. `vfio-pci` reads none: who opens the device does.
pub fn plan(current: &Current, target: &Target) -> Vec<Step> {
    let Current { vf, pf, index, .. } = *current;
    let wanted = &target.attributes;
    let changes = changes(current, target);
    let has_kernel_driver = current.driver.as_deref().is_some_and(|driver| !is_userspace_driver(driver));
    let new_address = has_kernel_driver && changes.iter().any(|change| matches!(change, VfChange::Mac(_)));
    let rebind = target.fresh || new_address || !target.binding.holds(current.driver.as_deref());
    let members: Vec<_> = target
        .members
        .iter()
        .filter_map(|(&member, binding)| Some((member, current.members.get(&member)?.as_deref(), binding)))
        .filter(|(_, driver, binding)| target.fresh || !binding.holds(*driver))
        .collect();

    let mut steps = Vec::new();
    let changed = rebind.then_some((vf, current.driver.as_deref()));
    let wrongly_bound = members.iter().filter(|(_, driver, binding)| !binding.holds(*driver));
    for (function, driver) in changed.into_iter().chain(wrongly_bound.map(|&(member, driver, _)| (member, driver))) {
        steps.extend(driver.map(|driver| Step::Unbind { function, driver: driver.to_owned() }));
    }
    if target.fresh {
        steps.push(Step::Reset { function: vf });
    }
    steps.extend(changes.into_iter().map(|change| match change {
        VfChange::Mac(mac) if mac.is_zero() => Step::ClearMac { function: vf, pf, index, instead: current.derived_mac },
        change => Step::Set { function: vf, pf, index, change },
    }));
    for (member, driver, binding) in members {
        bind(&mut steps, member, driver, binding);
    }
    if rebind {
        bind(&mut steps, vf, None, &target.binding);
    }
    // A driver that starts again begins with its own MTU.
    let mtu = if rebind { None } else { current.mtu };
    let has_interface = matches!(&target.binding, Binding::Found)
        || matches!(&target.binding, Binding::To(driver) if !is_userspace_driver(driver));
    // One that is in its pod has none that could be seen or set.
    let is_away = !rebind && current.mtu.is_none();
    if let Some(wanted) = wanted.mtu.filter(|wanted| has_interface && !is_away && mtu != Some(*wanted)) {
        steps.push(Step::Mtu { function: vf, mtu: wanted });
    }
    steps
}

/// What the PF has to be told.
fn changes(current: &Current, target: &Target) -> Vec<VfChange> {
    let wanted = &target.attributes;
    let Some(now) = current.report.told() else { return Vec::new() };
    let mut changes = now.towards(wanted);
    match wanted.mac {
        // A driver that refuses zeros has it in their place.
        Some(mac) if mac.is_zero() && !target.fresh && current.derived_mac == Some(now.mac) => {
            changes.retain(|change| !matches!(change, VfChange::Mac(_)));
        }
        // A VF that is reset may forget an address that the PF did not give it.
        Some(mac) if !mac.is_zero() && target.fresh && !changes.contains(&VfChange::Mac(mac)) => {
            changes.push(VfChange::Mac(mac));
        }
        _ => {}
    }
    changes
}

/// The steps that bring the others of an IOMMU group to their drivers.
pub fn plan_members(
    current: &BTreeMap<PciAddress, Option<String>>,
    wanted: &BTreeMap<PciAddress, Binding>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for (&function, binding) in wanted {
        let Some(driver) = current.get(&function).map(Option::as_deref) else { continue };
        if let Some(driver) = driver.filter(|_| !binding.holds(driver)) {
            steps.push(Step::Unbind { function, driver: driver.to_owned() });
        }
        bind(&mut steps, function, driver, binding);
    }
    steps
}

/// The steps to a binding, from a function that has the right driver or none.
fn bind(steps: &mut Vec<Step>, function: PciAddress, driver: Option<&str>, binding: &Binding) {
    let bound = driver.is_some() && binding.holds(driver);
    let reserve = |driver: Option<&str>| Step::Override { function, driver: driver.map(ToOwned::to_owned) };
    match binding {
        Binding::None => steps.push(reserve(None)),
        // The reservation stays while it is lent: without it a rescan may bind another driver.
        Binding::To(wanted) if is_userspace_driver(wanted) => {
            steps.push(reserve(Some(wanted)));
            if !bound {
                steps.push(Step::Probe { function, driver: Some(wanted.clone()) });
            }
        }
        // With autoprobe off nothing binds to a VF but the driver that it is reserved for, so the
        // kernel's driver needs a reservation too, for a moment.
        Binding::To(wanted) => {
            if !bound {
                steps.push(reserve(Some(wanted)));
                steps.push(Step::Probe { function, driver: Some(wanted.clone()) });
            }
            steps.push(reserve(None));
        }
        Binding::Found => {
            steps.push(reserve(None));
            if !bound {
                steps.push(Step::Probe { function, driver: None });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::VFIO_PCI;
    use crate::attributes::VfState;

    fn current(driver: Option<&str>) -> Current {
        Current {
            vf: PciAddress::new(0, 2, 16, 0),
            pf: PciAddress::new(0, 2, 0, 0),
            index: 0,
            driver: driver.map(ToOwned::to_owned),
            report: VfReport::Told(VfState::default()),
            derived_mac: None,
            card: None,
            mtu: Some(1500),
            interface: None,
            members: BTreeMap::new(),
        }
    }

    fn target(binding: Binding) -> Target {
        Target { binding, attributes: Attributes::default(), members: BTreeMap::new(), fresh: false }
    }

    fn told(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_as_wanted_needs_no_step() {
        for (driver, binding) in [
            (None, Binding::None),
            (Some("igbvf"), Binding::To("igbvf".into())),
            (Some("igbvf"), Binding::Found),
            (Some(VFIO_PCI), Binding::To(VFIO_PCI.into())),
        ] {
            let wanted = Target { attributes: VfState::default().as_wanted(), ..target(binding) };
            assert_eq!(plan(&current(driver), &wanted), []);
        }
    }

    #[test]
    fn a_vf_goes_from_the_kernel_to_vfio_and_keeps_its_reservation() {
        let steps = plan(&current(Some("igbvf")), &target(Binding::To(VFIO_PCI.into())));
        assert_eq!(
            told(&steps),
            ["unbind 0000:02:10.0 from igbvf", "reserve 0000:02:10.0 for vfio-pci", "bind 0000:02:10.0 to vfio-pci"]
        );
    }

    #[test]
    fn the_mtu_of_an_interface_that_is_in_another_namespace_is_left_alone() {
        let wanted = Attributes { mtu: Some(9000), ..Attributes::default() };
        let wanted = Target { attributes: wanted, ..target(Binding::To("igbvf".into())) };
        assert_eq!(told(&plan(&current(Some("igbvf")), &wanted)), ["set mtu 9000 of 0000:02:10.0"]);
        let away = Current { mtu: None, ..current(Some("igbvf")) };
        assert_eq!(plan(&away, &wanted), []);
        let unbound = Current { mtu: None, ..current(None) };
        assert!(
            told(&plan(&unbound, &wanted)).contains(&"set mtu 9000 of 0000:02:10.0".to_owned()),
            "it comes with its driver"
        );
    }

    #[test]
    fn a_vf_comes_back_to_the_kernel_clean_and_without_a_reservation() {
        let mtu = Attributes { mtu: Some(1500), ..Attributes::default() };
        let wanted = Target { fresh: true, attributes: mtu, ..target(Binding::To("igbvf".into())) };
        let steps = plan(&current(Some(VFIO_PCI)), &wanted);
        assert_eq!(
            told(&steps),
            [
                "unbind 0000:02:10.0 from vfio-pci",
                "reset 0000:02:10.0",
                "reserve 0000:02:10.0 for igbvf",
                "bind 0000:02:10.0 to igbvf",
                "let any driver have 0000:02:10.0",
                "set mtu 1500 of 0000:02:10.0"
            ]
        );
    }

    #[test]
    fn a_new_address_starts_the_driver_again() {
        let wanted = Target {
            attributes: Attributes { mac: Some(Mac([2, 0, 0, 0, 0, 1])), ..Attributes::default() },
            ..target(Binding::To("igbvf".into()))
        };
        let steps = told(&plan(&current(Some("igbvf")), &wanted));
        assert_eq!(steps[0], "unbind 0000:02:10.0 from igbvf");
        assert_eq!(steps[1], "set mac 02:00:00:00:00:01 of 0000:02:10.0 (VF 0 of 0000:02:00.0)");
        assert!(steps.contains(&"bind 0000:02:10.0 to igbvf".to_owned()), "{steps:?}");
    }

    #[test]
    fn a_new_address_of_a_vf_in_user_space_is_told_to_the_pf_alone() {
        let wanted = Target {
            attributes: Attributes { mac: Some(Mac([2, 0, 0, 0, 0, 1])), ..Attributes::default() },
            ..target(Binding::To(VFIO_PCI.into()))
        };
        let steps = told(&plan(&current(Some(VFIO_PCI)), &wanted));
        assert_eq!(steps, ["set mac 02:00:00:00:00:01 of 0000:02:10.0 (VF 0 of 0000:02:00.0)"]);
    }

    #[test]
    fn an_address_that_stands_for_none_is_cleared_on_the_way_back_and_no_drift_after_it() {
        let derived = Mac([2, 0, 0, 0, 0, 7]);
        let now = Current {
            report: VfReport::Told(VfState { mac: derived, ..VfState::default() }),
            derived_mac: Some(derived),
            ..current(None)
        };
        let none = Attributes { mac: Some(Mac::default()), ..Attributes::default() };
        let back = Target { attributes: none, fresh: true, ..target(Binding::None) };
        let clear = Step::ClearMac { function: now.vf, pf: now.pf, index: 0, instead: Some(derived) };
        assert!(plan(&now, &back).contains(&clear), "{:?}", plan(&now, &back));
        assert!(!plan(&now, &Target { fresh: false, ..back }).contains(&clear));
    }

    #[test]
    fn the_whole_group_goes_to_vfio_and_comes_back() {
        let other = PciAddress::new(0, 2, 16, 2);
        let mut now = current(Some("igbvf"));
        now.members.insert(other, Some("igbvf".into()));
        let mut wanted = target(Binding::To(VFIO_PCI.into()));
        wanted.members.insert(other, Binding::To(VFIO_PCI.into()));
        let steps = told(&plan(&now, &wanted));
        assert_eq!(steps[..2], ["unbind 0000:02:10.0 from igbvf", "unbind 0000:02:10.2 from igbvf"]);
        assert!(steps.contains(&"bind 0000:02:10.2 to vfio-pci".to_owned()), "{steps:?}");

        now.members.insert(other, Some(VFIO_PCI.into()));
        wanted = Target { fresh: true, ..target(Binding::None) };
        wanted.members.insert(other, Binding::To("igbvf".into()));
        let steps = told(&plan(&now, &wanted));
        assert!(steps.contains(&"bind 0000:02:10.2 to igbvf".to_owned()), "{steps:?}");
        assert!(steps.contains(&"let any driver have 0000:02:10.2".to_owned()), "{steps:?}");
    }
}
