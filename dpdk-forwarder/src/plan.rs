//! Compares the wires that are with the wires that should be.

use std::collections::HashMap;

use ferrule_dataplane::spec::WireSpec;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Remove the wire of this name.
    Remove(String),
    /// Make the wire of this name what is wanted.
    Change(WireSpec),
    /// Make this wire.
    Add(WireSpec),
}

/// The steps that turn `current` into `wanted`. What is equal in both is not touched. Removals come first, because what
/// they free (a socket, an interface's name) may be wanted by the rest; then changes, for the same reason. Names are
/// unique in each list.
pub fn plan(current: &[WireSpec], wanted: &[WireSpec]) -> Vec<Step> {
    let by_name = |list: &'_ [WireSpec]| list.iter().map(|spec| (spec.name.clone(), spec.clone())).collect();
    let (is, should): (HashMap<String, WireSpec>, HashMap<String, WireSpec>) = (by_name(current), by_name(wanted));
    let removals = current.iter().filter(|spec| !should.contains_key(&spec.name));
    let changes = wanted.iter().filter(|spec| is.get(&spec.name).is_some_and(|is| is != *spec));
    let additions = wanted.iter().filter(|spec| !is.contains_key(&spec.name));
    let removals = removals.map(|spec| Step::Remove(spec.name.clone()));
    removals.chain(changes.cloned().map(Step::Change)).chain(additions.cloned().map(Step::Add)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ferrule_dataplane::spec::{EndSpec, Full, MemifSpec, Role, SocketAddress};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn applying_the_plan_gives_what_is_wanted(current in wires(), wanted in wires()) {
            let mut state: BTreeMap<_, _> = current.iter().map(|spec| (spec.name.clone(), spec.clone())).collect();
            for step in plan(&current, &wanted) {
                match step {
                    Step::Remove(name) => prop_assert!(state.remove(&name).is_some(), "{name} was not there"),
                    Step::Change(spec) => prop_assert!(state.insert(spec.name.clone(), spec).is_some(), "was not there"),
                    Step::Add(spec) => prop_assert!(state.insert(spec.name.clone(), spec).is_none(), "was there"),
                }
            }
            let wanted: BTreeMap<_, _> = wanted.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
            prop_assert_eq!(state, wanted);
        }

        #[test]
        fn a_plan_to_stay_is_empty(current in wires()) {
            prop_assert!(plan(&current, &current).is_empty());
        }

        #[test]
        fn a_wire_equal_on_both_sides_is_never_touched(current in wires(), wanted in wires()) {
            for step in plan(&current, &wanted) {
                let name = match &step {
                    Step::Remove(name) => name,
                    Step::Change(spec) | Step::Add(spec) => &spec.name,
                };
                let find = |list: &[WireSpec]| list.iter().find(|spec| spec.name == *name).cloned();
                prop_assert_ne!(find(&current), find(&wanted));
            }
        }

        #[test]
        fn removals_come_before_changes_and_these_before_additions(current in wires(), wanted in wires()) {
            let order = |step: &Step| match step {
                Step::Remove(_) => 0,
                Step::Change(_) => 1,
                Step::Add(_) => 2,
            };
            prop_assert!(plan(&current, &wanted).is_sorted_by_key(order));
        }
    }

    /// Up to six wires of few names and few forms, so that two lists often share some.
    fn wires() -> impl Strategy<Value = Vec<WireSpec>> {
        proptest::collection::btree_map("[a-f]", (0..3_u32, any::<bool>()), 0..6).prop_map(|wires| {
            wires
                .into_iter()
                .map(|(name, (id, drop))| {
                    let end = |socket: &str| {
                        let socket = SocketAddress::Abstract(socket.to_owned());
                        EndSpec::Memif(MemifSpec { id, ..MemifSpec::new(socket, Role::Server) })
                    };
                    let full = if drop { Full::Drop } else { Full::Hold };
                    WireSpec { full, ..WireSpec::new(name, [end("left"), end("right")]) }
                })
                .collect()
        })
    }
}
