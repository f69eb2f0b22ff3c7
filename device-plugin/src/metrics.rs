//! The plugin as Prometheus reads it, made anew for every scrape.

use std::collections::BTreeMap;
use std::fmt;

use ferrule_daemon::metrics::{self, Labels, Process, counters, gauges};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::counters::{BUCKETS, Counters, Counts, Times};
use crate::resources::{Resources, Shown};

/// Everything that one scrape tells.
#[derive(Debug)]
pub struct Snapshot {
    resources: Vec<Shown>,
    counts: BTreeMap<String, Counts>,
    is_on_duty: bool,
    is_config_refused: bool,
    process: Option<Process>,
}

impl Snapshot {
    /// What is known now.
    pub fn take(resources: &Resources, counters: &Counters, is_on_duty: bool) -> Self {
        Self {
            resources: resources.shown(),
            counts: counters.all(),
            is_on_duty,
            is_config_refused: resources.is_config_refused(),
            process: Process::read(),
        }
    }

    /// In the `OpenMetrics` text format.
    pub fn render(self) -> Result<String, fmt::Error> {
        metrics::render(self)
    }

    fn devices(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let of = |count: fn(&Shown) -> usize| {
            self.resources.iter().map(move |shown| (resource(&shown.resource), count(shown) as u64))
        };
        gauges(encoder, ("ferrule_resource_devices", "Devices of the resource"), of(|shown| shown.devices))?;
        gauges(encoder, ("ferrule_resource_held", "Devices of the resource that pods have"), of(|shown| shown.held))?;
        let help = "Devices of the resource that are unhealthy for the kubelet";
        gauges(encoder, ("ferrule_resource_unhealthy", help), of(|shown| shown.problems.len()))?;
        let problems = self.resources.iter().flat_map(|shown| {
            shown.problems.iter().map(|(id, problem)| {
                let labels = [("device", id.clone()), ("why", problem.word().to_owned())];
                ([resource(&shown.resource), labels.into()].concat(), 1_u64)
            })
        });
        gauges(encoder, ("ferrule_device_unhealthy", "A device that is unhealthy for the kubelet, and why"), problems)
    }

    fn events(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let of =
            |count: fn(&Counts) -> u64| self.counts.iter().map(move |(name, counts)| (resource(name), count(counts)));
        let help = "Calls of Allocate that gave devices";
        counters(encoder, ("ferrule_allocations", help), of(|counts| counts.allocated))?;
        let help = "Calls of Allocate that cost a pod its life";
        counters(encoder, ("ferrule_allocations_refused", help), of(|counts| counts.refused))?;
        let help = "Calls of Allocate whose devices were not ready at once";
        counters(encoder, ("ferrule_allocations_postponed", help), of(|counts| counts.postponed))?;
        let help = "Starts of containers that were put off, to be tried again";
        counters(encoder, ("ferrule_start_failures", help), of(|counts| counts.start_failures))?;
        counters(encoder, ("ferrule_releases", "Devices that were given back"), of(|counts| counts.released))?;
        let help = "Tries to give a device back that failed, mostly since somebody still holds it";
        counters(encoder, ("ferrule_release_failures", help), of(|counts| counts.release_failures))?;
        let help = "Registrations that the kubelet took";
        counters(encoder, ("ferrule_registrations", help), of(|counts| counts.registrations))?;
        let help = "Tries to register that failed";
        counters(encoder, ("ferrule_registration_failures", help), of(|counts| counts.registration_failures))?;
        let help = "Whether the kubelet has the list of the resource open";
        gauges(encoder, ("ferrule_registered", help), of(|counts| u64::from(counts.is_registered)))?;
        self.times(encoder, ("ferrule_allocate_seconds", "How long a call of Allocate took, in seconds"), |counts| {
            &counts.allocate_times
        })?;
        let help = "How long it took until VFs were lent that had to be bound to another driver, in seconds";
        self.times(encoder, ("ferrule_rebind_seconds", help), |counts| &counts.rebind_times)
    }

    fn times(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        of: fn(&Counts) -> &Times,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (name, counts) in &self.counts {
            let Times { at_most, count, seconds } = of(counts);
            let mut below = 0;
            let mut buckets = Vec::new();
            for (limit, total) in BUCKETS.iter().zip(at_most) {
                buckets.push((*limit, total - below));
                below = *total;
            }
            buckets.push((f64::INFINITY, count - below));
            let labels = resource(name);
            let mut family = metric.encode_family(&labels)?;
            family.encode_histogram::<NoLabelSet>(*seconds, *count, &buckets, None)?;
        }
        Ok(())
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        gauges(encoder, ("ferrule_build_info", "The plugin that runs"), [(build, 1_u64)])?;
        let help = "Whether this plugin serves the node; another one does while this one waits for its end";
        gauges(encoder, ("ferrule_device_plugin_on_duty", help), [(Labels::new(), u64::from(self.is_on_duty))])?;
        let help = "Whether the configuration as it is now is not used";
        gauges(encoder, ("ferrule_config_refused", help), [(Labels::new(), u64::from(self.is_config_refused))])?;
        self.devices(encoder)?;
        self.events(encoder)?;
        self.process.as_ref().map_or(Ok(()), |process| process.encode(encoder))
    }
}

fn resource(name: &str) -> Labels {
    vec![("resource", name.to_owned())]
}
