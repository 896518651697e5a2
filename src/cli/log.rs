//! How log lines look and which are written: to standard error, for people, for the journal, or as JSON.

mod queue;
mod repeats;

use std::fmt;
use std::io::{IsTerminal as _, stderr};
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::format::{Compact, Format, Writer};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{self, Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};

use super::{Common, Exit, Failure};
use crate::config::{Config, Environment, LogFormat};
use queue::Queue;
use repeats::{Counting, Repeats};

const WITHOUT_EVENTS: &str = "warn,cnblogs_proxy::notify=off";

/// Changes the filter later.
pub(super) struct LogFilter(reload::Handle<EnvFilter, Registry>);

/// The daemon's log, to its end: dropped, it says what was still counted and writes what waits.
pub(super) struct Log {
    _counting: Counting,
    _queue: Queue,
}

/// Starts the daemon's log: nothing that writes to it waits for who reads it, panics included.
pub(super) fn start(
    config: &Config,
    common: &Common,
    environment: &Environment,
) -> Result<(LogFilter, Log), Failure> {
    let form = LineFormat::of(config, environment);
    let direct = tracing_subscriber::registry().with(LevelFilter::WARN).with(lines(form, stderr));
    let (queue, writer) = Queue::to_stderr(Dispatch::new(direct));
    let repeats = Arc::<Repeats>::default();
    let filter = start_with(filter(config, common)?, form, writer, Some(Arc::clone(&repeats)));
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let (name, words) = (thread.name().unwrap_or("unnamed"), panic.payload_as_str().unwrap_or_default());
        match panic.location() {
            Some(place) => tracing::error!("thread '{name}' panicked at {place}: {words}"),
            None => tracing::error!("thread '{name}' panicked: {words}"),
        }
    }));
    Ok((filter, Log { _counting: Counting(repeats), _queue: queue }))
}

/// Starts the log of a command that a person sits in front of, and who need not be told that one is needed.
pub(super) fn start_quiet(
    config: &Config,
    common: &Common,
    environment: &Environment,
) -> Result<(), Failure> {
    let filter = if common.log.is_some() { filter(config, common)? } else { EnvFilter::new(WITHOUT_EVENTS) };
    let _filter = start_with(filter, LineFormat::of(config, environment), stderr, None);
    Ok(())
}

fn start_with<W>(filter: EnvFilter, form: LineFormat, writer: W, repeats: Option<Arc<Repeats>>) -> LogFilter
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter);
    let lines = lines(form, writer).with_filter(Written { repeats });
    // A second start in one process keeps the first.
    let _started = tracing_subscriber::registry().with(filter).with(lines).try_init();
    LogFilter(handle)
}

/// How a line looks.
#[derive(Clone, Copy)]
enum LineFormat {
    Json,
    Journal,
    Text { is_coloured: bool },
}

impl LineFormat {
    fn of(config: &Config, environment: &Environment) -> Self {
        match config.log_format {
            LogFormat::Json => Self::Json,
            LogFormat::Auto if is_journal(environment) => Self::Journal,
            LogFormat::Auto => Self::Text { is_coloured: stderr().is_terminal() },
            LogFormat::Text => Self::Text { is_coloured: false },
        }
    }
}

fn lines<S, W>(form: LineFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    match form {
        LineFormat::Json => lines.json().flatten_event(true).boxed(),
        LineFormat::Journal => {
            let format =
                Journal(Format::default().compact().without_time().with_ansi(false).with_target(false));
            lines.event_format(format).with_ansi(false).boxed()
        }
        LineFormat::Text { is_coloured } => {
            let format: Format<Compact, SystemTime> = Format::default().compact().with_target(false);
            lines.event_format(format).with_ansi(is_coloured).boxed()
        }
    }
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

/// What is written of what the person's filter lets through.
struct Written {
    repeats: Option<Arc<Repeats>>,
}

impl<S> layer::Filter<S> for Written {
    /// Other crates' debug lines may show what must stay secret: fields, bodies, addresses with codes in them.
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        metadata.target().starts_with("cnblogs_proxy") || *metadata.level() <= Level::WARN
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.repeats.as_ref().is_none_or(|repeats| repeats.is_new(event))
    }
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
