//! How attacks on a vhost-user end that listens must end.

use crate::held::Held;
use crate::testbed::{Case, Expect, Far, Testbed, Victim};

/// The attacked end stays free for others.
pub const fn free(name: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    against(Far::Memif, name, Expect::Free, attack)
}

/// The frontend loses its connection, and the wire shows this text.
pub const fn loses(name: &'static str, text: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    against(Far::Memif, name, Expect::Loses(text), attack)
}

/// The frontend keeps its connection.
pub const fn stays(name: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    against(Far::Memif, name, Expect::Stays, attack)
}

/// The frontend keeps its connection or loses it.
pub const fn may_stay(name: &'static str, attack: fn(&Testbed) -> Held) -> Case {
    against(Far::Memif, name, Expect::MayStay, attack)
}

/// Any of these, with somebody in particular at the other end of the wire.
pub const fn against(far: Far, name: &'static str, expect: Expect, attack: fn(&Testbed) -> Held) -> Case {
    Case { name, victim: Victim::VhostServer(far), expect, attack }
}
