//! The text that Prometheus reads: families of samples, each with its name, its kind and what it means (the text
//! format, version 0.0.4).

use std::fmt::{Display, Write as _};

use super::Distribution;

/// What the text is, as a media type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// What all names begin with.
const PREFIX: &str = "cnblogs_proxy_";

/// What kind of number a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until the process ends.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Counted by upper bounds.
    Histogram,
}

/// Families, one after the other.
#[derive(Debug, Default)]
pub struct Text(String);

/// A family that samples are added to.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl Text {
    /// Begins a family; `name` lacks the prefix, and `help` is one plain line.
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let text = &mut self.0;
        *text += &format!("# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n");
        Family { text, name }
    }

    /// All of it.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// Adds a sample.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.write("", labels, value);
    }

    /// Adds the samples of a histogram.
    pub fn histogram(&mut self, seen: &Distribution) {
        for (bound, number) in seen.cumulated() {
            self.write("_bucket", &[("le", &bound.as_secs_f64().to_string())], number);
        }
        self.write("_bucket", &[("le", "+Inf")], seen.count());
        self.write("_sum", &[], seen.sum.as_secs_f64());
        self.write("_count", &[], seen.count());
    }

    fn write(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        writeln!(self.text, "{PREFIX}{}{suffix}{labels} {value}", self.name)
            .expect("a string can be written to");
    }
}

/// A label's value as it stands between quotation marks.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::Histogram;
    use super::*;

    #[test]
    fn a_label_ends_where_its_value_does_whatever_that_is() {
        let mut text = Text::default();

        let hostile = "a\"} 1\nb{c=\"\\";
        text.family("x", Kind::Gauge, "An x.").sample(&[("account", hostile), ("state", "ready")], 1);

        let expected = "# HELP cnblogs_proxy_x An x.\n# TYPE cnblogs_proxy_x gauge\n\
            cnblogs_proxy_x{account=\"a\\\"} 1\\nb{c=\\\"\\\\\",state=\"ready\"} 1\n";
        assert_eq!(text.into_string(), expected);
    }

    #[test]
    fn a_histogram_is_written_in_seconds_and_cumulated() {
        let histogram = Histogram::default();
        for micros in [900, 1000, 1500, 90_000_000] {
            histogram.observe(std::time::Duration::from_micros(micros));
        }
        let mut text = Text::default();

        text.family("t_seconds", Kind::Histogram, "Times.").histogram(&histogram.distribution());

        let text = text.into_string();
        let samples: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(PREFIX)).collect();
        assert_eq!(samples[0], "t_seconds_bucket{le=\"0.001\"} 2");
        assert_eq!(samples[1], "t_seconds_bucket{le=\"0.0025\"} 3");
        let end =
            ["t_seconds_bucket{le=\"60\"} 3", "t_seconds_bucket{le=\"+Inf\"} 4", "t_seconds_sum 90.0034"];
        assert_eq!(samples[samples.len() - 4..samples.len() - 1], end);
        assert_eq!(samples[samples.len() - 1], "t_seconds_count 4");
    }
}
