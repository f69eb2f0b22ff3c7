//! What metrics of our daemons have in common: this process, and short ways to say a gauge or a counter.

use std::fmt;

use nix::sys::resource::{UsageWho, getrusage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// A snapshot in the `OpenMetrics` text format, version 1.0.0: [`CONTENT_TYPE`].
pub fn render(snapshot: impl Collector) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

/// What the kernel says of this process.
#[derive(Debug)]
pub struct Process {
    resident_bytes: u64,
    open_fds: u64,
    cpu_seconds: f64,
}

impl Process {
    /// None where `/proc` is not to be read.
    pub fn read() -> Option<Self> {
        let process = procfs::process::Process::myself().ok()?;
        let pages = process.statm().ok()?.resident;
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        let seconds = [usage.user_time(), usage.system_time()]
            .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
            .iter()
            .sum();
        Some(Self {
            resident_bytes: pages * procfs::page_size(),
            open_fds: process.fd_count().ok()? as u64,
            cpu_seconds: seconds,
        })
    }

    /// Adds it to a scrape.
    pub fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let none = Labels::new;
        let resident = ("process_resident_memory_bytes", "Memory in use, in bytes");
        gauges(encoder, resident, [(none(), self.resident_bytes)])?;
        gauges(encoder, ("process_open_fds", "Open file descriptors"), [(none(), self.open_fds)])?;
        counters(encoder, ("process_cpu_seconds", "CPU time used, in seconds"), [(none(), self.cpu_seconds)])
    }
}

/// Names and values.
pub type Labels = Vec<(&'static str, String)>;

/// One gauge with each of its label sets.
pub fn gauges<V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    samples: impl IntoIterator<Item = (Labels, V)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        if labels.is_empty() {
            metric.encode_gauge(&value)?;
        } else {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
    }
    Ok(())
}

/// One counter with each of its label sets. The format itself adds `_total` to the name.
pub fn counters<V: EncodeCounterValue>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    samples: impl IntoIterator<Item = (Labels, V)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in samples {
        if labels.is_empty() {
            metric.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        } else {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
    }
    Ok(())
}

/// What a scrape is served as.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
