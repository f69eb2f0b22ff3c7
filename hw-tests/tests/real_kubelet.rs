//! One scenario of `make node` in every test run, where a kubelet was built before: it is not built for this.

use ferrule_hw_tests::need::skip;
use ferrule_hw_tests::node::pieces::NodePieces;
use ferrule_hw_tests::node::runner;
use ferrule_hw_tests::node::scenarios::ALL;
use ferrule_hw_tests::node::stand::Stand;

#[test]
fn a_real_kubelet_lists_and_allocates_our_devices() {
    let test = "a_real_kubelet_lists_and_allocates_our_devices";
    if let Err(missing) = NodePieces::find(Stand::Standalone) {
        return skip(test, &format!("{missing:#}"));
    }
    let scenario = ALL.iter().find(|scenario| scenario.stand == Stand::Standalone);
    let report = runner::run(&[scenario.expect("there is one")]).expect("the node can be started");
    assert_eq!(report.counts(), [1, 0, 0], "what it says is above");
}
