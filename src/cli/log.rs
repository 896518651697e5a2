//! How log lines look and which are written: to standard error, for people, for the journal, or as JSON.

use std::fmt;
use std::io::{IsTerminal as _, stderr};

use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterFn};
use tracing_subscriber::fmt::format::{Compact, Format, Writer};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, reload};

use super::{Common, Exit, Failure};
use crate::config::{Config, Environment, LogFormat};

const WITHOUT_EVENTS: &str = "warn,cnblogs_proxy::notify=off";

/// Changes the filter later.
pub(super) struct LogFilter(reload::Handle<EnvFilter, Registry>);

/// Starts the daemon's log.
pub(super) fn start(
    config: &Config,
    common: &Common,
    environment: &Environment,
) -> Result<LogFilter, Failure> {
    start_with(filter(config, common)?, config, environment)
}

/// Starts the log of a command that a person sits in front of, and who need not be told that one is needed.
pub(super) fn start_quiet(
    config: &Config,
    common: &Common,
    environment: &Environment,
) -> Result<(), Failure> {
    let filter = if common.log.is_some() { filter(config, common)? } else { EnvFilter::new(WITHOUT_EVENTS) };
    start_with(filter, config, environment).map(drop)
}

fn start_with(filter: EnvFilter, config: &Config, environment: &Environment) -> Result<LogFilter, Failure> {
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(stderr);
    let is_plain = config.log_format == LogFormat::Text || !stderr().is_terminal();
    let only_ours = FilterFn::new(is_safe);
    // A second start in one process keeps the first.
    let _started = match config.log_format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_filter(only_ours)).try_init(),
        LogFormat::Auto if is_journal(environment) => {
            let format =
                Journal(Format::default().compact().without_time().with_ansi(false).with_target(false));
            registry.with(lines.event_format(format).with_ansi(false).with_filter(only_ours)).try_init()
        }
        LogFormat::Auto | LogFormat::Text => {
            let format: Format<Compact, SystemTime> = Format::default().compact().with_target(false);
            registry.with(lines.event_format(format).with_ansi(!is_plain).with_filter(only_ours)).try_init()
        }
    };
    Ok(LogFilter(handle))
}

/// True when standard error is the journal's (`JOURNAL_STREAM`, `systemd.exec(5)`). The variable alone says nothing:
/// a terminal that a service opened has it, too.
pub(super) fn is_journal(environment: &Environment) -> bool {
    let stream = rustix::fs::fstat(stderr()).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    stream.is_ok_and(|stream| environment.var("JOURNAL_STREAM") == Some(stream.as_str()))
}

impl LogFilter {
    /// Makes another filter. What is returned puts it in place.
    pub(super) fn prepare(
        &self,
        config: &Config,
        common: &Common,
    ) -> anyhow::Result<Box<dyn FnOnce() + Send>> {
        let filter = filter(config, common).map_err(|failure| anyhow::anyhow!(failure.message))?;
        let handle = self.0.clone();
        // Fails only where the log has ended.
        Ok(Box::new(move || drop(handle.reload(filter))))
    }
}

fn filter(config: &Config, common: &Common) -> Result<EnvFilter, Failure> {
    let text = common.log.as_deref().unwrap_or(&config.log);
    EnvFilter::try_new(text).map_err(|error| {
        Failure::new(Exit::Configuration, format!("log: not a filter: {error}"))
            .with_hint("write error, warn, info, debug or trace")
    })
}

/// Other crates' debug lines may show what must stay secret: fields, bodies, addresses with codes in them.
fn is_safe(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("cnblogs_proxy") || *metadata.level() <= Level::WARN
}

/// Lines with the priority in front that the journal understands (sd-daemon(3)).
struct Journal(Format<Compact, ()>);

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(ctx, writer, event)
    }
}
