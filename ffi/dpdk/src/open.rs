//! A port and its queues, made together.

use std::sync::Arc;

use crate::config::PortConfig;
use crate::eal::Eal;
use crate::error::PortError;
use crate::port::Port;
use crate::queue::{RxQueue, TxQueue};
use crate::watch::LossFn;

/// What receives and what sends, queue by queue.
pub type QueuePairs = Vec<(RxQueue, TxQueue)>;

impl Port {
    /// Makes the device that `devargs` names (`net_af_packet0,iface=eth1`; `0000:3b:02.1`), and starts it. Its queue pairs in
    /// their order. `lost` is called, on a thread of DPDK's on which the port must not be closed, when the device says that it is lost.
    ///
    /// # Errors
    /// It cannot be made, or cannot do what `config` asks for. Nothing of it is left then.
    pub fn open(
        eal: &'static Eal,
        devargs: &str,
        config: &PortConfig,
        lost: LossFn,
    ) -> Result<(Arc<Self>, QueuePairs), PortError> {
        let mut port = Self::probe(eal, devargs)?;
        port.set_up(config, lost)?;
        let port = Arc::new(port);
        let queues = port.pools.iter().zip(0..).map(|(pool, queue)| {
            (RxQueue::new(Arc::clone(&port), queue), TxQueue::new(Arc::clone(&port), queue, pool))
        });
        let queues = queues.collect();
        Ok((port, queues))
    }
}
