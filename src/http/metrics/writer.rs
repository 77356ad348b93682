//! Writes values that were read elsewhere as metrics.

use std::fmt;

use keyward_admin::message::Histogram;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Writes metrics. The name of a counter is stated without `_total`, which the encoder appends.
pub(super) struct Writer<'e>(DescriptorEncoder<'e>);

impl<'e> Writer<'e> {
    pub(super) fn new(encoder: DescriptorEncoder<'e>) -> Self {
        Self(encoder)
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    /// A gauge that is absent if its value is not known.
    pub(super) fn known_gauge(&mut self, name: &str, help: &str, value: Option<f64>) -> fmt::Result {
        value.map_or(Ok(()), |value| self.gauge(name, help, value))
    }

    pub(super) fn flag(&mut self, name: &str, help: &str, value: bool) -> fmt::Result {
        self.gauge(name, help, f64::from(u8::from(value)))
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    /// A counter of seconds, which are no whole number.
    pub(super) fn seconds_counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    /// A gauge for each value of `label`.
    pub(super) fn gauges<'v>(
        &mut self,
        (name, label): (&str, &str),
        help: &str,
        values: impl IntoIterator<Item = (&'v str, f64)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        values.into_iter().try_for_each(|(value_of_label, value)| {
            ConstGauge::new(value).encode(encoder.encode_family(&[(label, value_of_label)])?)
        })
    }

    /// A counter for each value of `label`.
    pub(super) fn counters<'v>(
        &mut self,
        (name, label): (&str, &str),
        help: &str,
        values: impl IntoIterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        values.into_iter().try_for_each(|(value_of_label, value)| {
            ConstCounter::new(value).encode(encoder.encode_family(&[(label, value_of_label)])?)
        })
    }

    pub(super) fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        encode_histogram(histogram, self.0.encode_descriptor(name, help, None, MetricType::Histogram)?)
    }

    /// A histogram for each value of `label`.
    pub(super) fn histograms<'v>(
        &mut self,
        (name, label): (&str, &str),
        help: &str,
        values: impl IntoIterator<Item = (&'v str, &'v Histogram)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        values.into_iter().try_for_each(|(value_of_label, histogram)| {
            encode_histogram(histogram, encoder.encode_family(&[(label, value_of_label)])?)
        })
    }
}

fn encode_histogram(histogram: &Histogram, mut encoder: MetricEncoder<'_>) -> fmt::Result {
    let Histogram { sum, buckets, above } = histogram;
    let count = buckets.iter().map(|(_, count)| count).sum::<u64>() + above;
    let mut buckets = buckets.clone();
    buckets.push((f64::INFINITY, *above));
    encoder.encode_histogram::<[(&str, &str); 0]>(*sum, count, &buckets, None)
}
