//! What wires must not share, judged without touching the machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ferrule_dataplane::spec::{
    EndSpec, ExternalSpec, KernelSpec, MemifSpec, NetNs, Role, SocketAccess, SocketAddress, VhostUserSpec, WireSpec,
};

/// Two wires that cannot both be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    /// The later one and its field: where the error is reported.
    pub later: Place,
    /// The earlier one.
    pub earlier: Place,
    /// What both want.
    pub problem: String,
    /// What to do about it.
    pub cure: &'static str,
}

/// A field of a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The wire's index in the list.
    pub wire: usize,
    /// The field's path below the wire.
    pub field: String,
}

/// Every conflict between the wires of a list. What is wrong inside one wire is found by
/// [`WireSpec::check`].
pub(super) fn conflicts(wires: &[WireSpec]) -> Vec<Conflict> {
    let mut seen = Seen::default();
    for (wire, spec) in wires.iter().enumerate() {
        seen.name(wire, &spec.name);
        for (end, spec) in spec.ends.iter().enumerate() {
            match spec {
                EndSpec::Memif(memif) => seen.memif(wire, end, memif),
                EndSpec::VhostUser(vhost) => seen.vhost_user(wire, end, vhost),
                EndSpec::Kernel(kernel) => seen.kernel(wire, end, kernel),
                EndSpec::External(external) => seen.external(wire, end, external),
            }
        }
    }
    seen.conflicts
}

/// What is spoken on a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memif,
    VhostUser,
}

/// Who was the first to want what.
#[derive(Default)]
struct Seen<'a> {
    names: HashMap<&'a str, Place>,
    servers: HashMap<(&'a SocketAddress, Option<PathBuf>, u32), Place>,
    /// Sockets with one peer, or with peers of one kind.
    sockets: HashMap<&'a SocketAddress, (Kind, Place)>,
    /// Who may connect, by socket.
    access: HashMap<&'a SocketAddress, (&'a SocketAccess, Place)>,
    interfaces: HashMap<(Option<PathBuf>, &'a str), Place>,
    /// What ports of other crates take for themselves.
    external: HashMap<String, Place>,
    roles: HashMap<&'a Path, (Role, u32, Place)>,
    conflicts: Vec<Conflict>,
}

impl<'a> Seen<'a> {
    fn name(&mut self, wire: usize, name: &'a str) {
        let later = Place { wire, field: "name".to_owned() };
        let earlier = self.names.entry(name).or_insert_with(|| later.clone());
        if *earlier != later {
            let problem = format!("the name `{name}` is in use");
            let earlier = earlier.clone();
            self.conflicts.push(Conflict { later, earlier, problem, cure: "rename one of them" });
        }
    }

    fn memif(&mut self, wire: usize, end: usize, memif: &'a MemifSpec) {
        if memif.role == Role::Server {
            // A path means the same socket in every network namespace.
            let netns = match memif.socket {
                SocketAddress::Path(_) => None,
                SocketAddress::Abstract(_) => memif.netns.as_ref().map(NetNs::path),
            };
            // An abstract name of another namespace is another socket.
            if netns.is_none() {
                self.socket(wire, format!("ends[{end}].memif.socket"), &memif.socket, Kind::Memif);
                self.access(wire, end, memif);
            }
            let later = Place { wire, field: format!("ends[{end}].memif.id") };
            let earlier = self.servers.entry((&memif.socket, netns, memif.id)).or_insert_with(|| later.clone()).clone();
            if earlier.wire != wire {
                let problem = format!("{} id {} is served already", memif.socket, memif.id);
                self.conflicts.push(Conflict { later, earlier, problem, cure: "give one of them another id" });
            }
        }
        if let SocketAddress::Path(path) = &memif.socket {
            self.role(wire, end, memif, path);
        }
    }

    /// Ends behind one socket have one file.
    fn access(&mut self, wire: usize, end: usize, memif: &'a MemifSpec) {
        let later = Place { wire, field: format!("ends[{end}].memif.socket") };
        let first = self.access.entry(&memif.socket).or_insert_with(|| (&memif.access, later.clone()));
        if *first.0 != memif.access {
            let problem = format!("{} has another `socket_owner`, `socket_group` or `socket_mode`", memif.socket);
            let (earlier, cure) = (first.1.clone(), "give both the same");
            self.conflicts.push(Conflict { later, earlier, problem, cure });
        }
    }

    /// A vhost-user socket is for one end, whoever listens: there is nothing to tell two of them apart by.
    fn vhost_user(&mut self, wire: usize, end: usize, vhost: &'a VhostUserSpec) {
        let field = format!("ends[{end}].vhost-user.socket");
        // Two clients of one path each get a connection of their own, if the frontend wants two.
        if vhost.role == Role::Server {
            self.socket(wire, field, &vhost.socket, Kind::VhostUser);
        }
    }

    fn socket(&mut self, wire: usize, field: String, socket: &'a SocketAddress, kind: Kind) {
        let later = Place { wire, field };
        let (first, earlier) = self.sockets.entry(socket).or_insert_with(|| (kind, later.clone())).clone();
        let shared = first == Kind::Memif && kind == Kind::Memif;
        if earlier.wire != wire && !shared {
            let problem = format!("{socket} is listened on already");
            self.conflicts.push(Conflict { later, earlier, problem, cure: "give one of them another socket" });
        }
    }

    fn role(&mut self, wire: usize, end: usize, memif: &MemifSpec, path: &'a Path) {
        let later = Place { wire, field: format!("ends[{end}].memif.role") };
        let (role, id, earlier) = self.roles.entry(path).or_insert_with(|| (memif.role, memif.id, later.clone()));
        // The same interface at both ends of one wire is that wire's own fault, and reported there.
        let reported = earlier.wire == wire && *id == memif.id;
        if *role != memif.role && !reported {
            let problem = format!("{} is used with role {role} already", path.display());
            let earlier = earlier.clone();
            let cure = "a socket has one role in a forwarder";
            self.conflicts.push(Conflict { later, earlier, problem, cure });
        }
    }

    fn kernel(&mut self, wire: usize, end: usize, kernel: &'a KernelSpec) {
        let netns = kernel.netns.as_ref().map(NetNs::path);
        let later = Place { wire, field: format!("ends[{end}].kernel.name") };
        let earlier = self.interfaces.entry((netns, kernel.name.as_str())).or_insert_with(|| later.clone()).clone();
        if earlier.wire != wire {
            let problem = format!("interface {} of the same namespace is made already", kernel.name);
            self.conflicts.push(Conflict { later, earlier, problem, cure: "rename one of them" });
        }
    }

    fn external(&mut self, wire: usize, end: usize, external: &ExternalSpec) {
        let later = Place { wire, field: format!("ends[{end}].{}", external.kind()) };
        let Some(identity) = external.identity() else { return };
        let earlier = self.external.entry(identity.clone()).or_insert_with(|| later.clone()).clone();
        if earlier.wire != wire {
            let problem = format!("{identity} is taken already");
            self.conflicts.push(Conflict { later, earlier, problem, cure: "choose another device for one of them" });
        }
    }
}
