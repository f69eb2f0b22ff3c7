//! What DPDK refuses is told with the device, the call and the cause, and leaves nothing.

use std::sync::Arc;

use ferrule_dpdk::config::PortConfig;
use ferrule_dpdk::port::Port;

use crate::link::{Link, dpdk};

#[test]
fn a_refusal_names_the_device_the_call_and_the_cause_and_leaves_nothing() {
    let (eal, _turn) = dpdk();
    let refusals = [
        ("net_nothing0", PortConfig::default(), "rte_dev_probe of net_nothing0: "),
        ("net_af_packet0,iface=nowhere", PortConfig::default(), "nowhere"),
        ("net_null0,nonsense=1", PortConfig::default(), "rte_dev_probe of net_null0,nonsense=1: "),
        ("vdev:crypto_null0", PortConfig::default(), "`vdev:crypto_null0` is neither a network driver's name"),
        ("crypto_null0", PortConfig::default(), "`crypto_null0` is neither a network driver's name"),
        ("0000:ff:1f.7", PortConfig::default(), "rte_dev_probe of 0000:ff:1f.7: "),
        ("", PortConfig::default(), "the name of : `` is neither"),
        ("net_null0\0", PortConfig::default(), "a zero byte"),
        (
            "net_null0",
            PortConfig { queues: 0, ..PortConfig::default() },
            "the configuration of net_null0: 0 queues; it has 1 to",
        ),
        ("net_null0", PortConfig { queues: 5000, ..PortConfig::default() }, "5000 queues; it has 1 to"),
        ("net_null0", PortConfig { mtu: Some(67), ..PortConfig::default() }, "an MTU of 67; 68 to"),
    ];
    for (devargs, config, cause) in refusals {
        let error = Port::open(eal, devargs, &config, Arc::new(|_| {})).err().map(|error| error.to_string());
        let error = error.unwrap_or_else(|| panic!("{devargs} was made"));
        assert!(error.contains(cause), "{devargs}: {error}");
        assert_eq!(eal.ports().len(), 0, "{devargs}");
    }
    // And after all that, it is made.
    let link = Link::open(eal, "net_null0", PortConfig::default());
    let error = Port::open(eal, "net_null0", &PortConfig::default(), Arc::new(|_| {})).err().unwrap().to_string();
    assert_eq!(error, "rte_dev_probe of net_null0: this process has that device already, or it has no Ethernet port");
    drop(link);
    drop(Link::open(eal, "net_null0", PortConfig::default()));
}
