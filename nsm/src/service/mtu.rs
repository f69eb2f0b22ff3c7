//! What the links of a connection carry: the smallest of them is what its context says.

use crate::proto::connection::Connection;

/// Its links carry packets of no more bytes than this; 0: nobody has said.
pub fn limit_mtu(connection: &mut Connection, carried: u32) {
    if carried > 0 {
        let context = connection.context.get_or_insert_default();
        context.mtu = if context.mtu == 0 { carried } else { context.mtu.min(carried) };
    }
}
