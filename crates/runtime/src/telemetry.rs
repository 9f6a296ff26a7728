//! Logs to standard error and metrics for Prometheus, set up once for each process.

use std::error::Error;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use logmesh_types::{at_work, metric};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::{EnvFilter, reload};

/// How often the recorder folds its samples into histograms. Without that they'd pile up until somebody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Upper bounds in seconds of histograms whose name ends in `_seconds`.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// The same where a day is possible: how long a line takes to the index.
const FRESHNESS: (&str, [f64; 14]) = (
    metric::FRESHNESS_SECONDS,
    [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3_600.0, 86_400.0],
);

/// Upper bounds of histograms of bytes and counts.
const SIZES: [f64; 10] = [1.0, 16.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 8_388_608.0];

/// What to log, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The least level, `info`, or levels for parts, `info,logmesh_agent=debug`.
    pub level: String,
    /// How a line of the log is written.
    pub format: Format,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Settings {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::Text }
    }
}

/// Gives the metrics as Prometheus text.
#[derive(Clone, Debug)]
pub struct MetricsHandle(PrometheusHandle);

impl MetricsHandle {
    #[cfg(test)]
    pub(crate) fn of(recorder: &metrics_exporter_prometheus::PrometheusRecorder) -> Self {
        Self(recorder.handle())
    }

    /// All metrics of this process, in Prometheus' text format.
    pub fn render(&self) -> String {
        self.0.render()
    }
}

/// Changes what is logged, once logging is set up.
type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;
static FILTER: OnceLock<SetFilter> = OnceLock::new();

/// A level of the settings, understood.
#[derive(Debug)]
pub struct Level(EnvFilter);

/// Refuses what isn't a level.
pub fn level(text: &str) -> anyhow::Result<Level> {
    let wrong = || {
        format!(
            "log level {text:?} is neither a level (error, warn, info, debug, trace, off) nor a list of target=level"
        )
    };
    // To the filter a lone word may also be a target that is logged whole, which silences everything else.
    let is_word = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let is_level = |part: &str| part.contains('=') || is_word(part.trim());
    anyhow::ensure!(text.split(',').all(is_level), wrong());
    let filter = EnvFilter::try_new(text).with_context(wrong)?;
    Ok(Level(filter))
}

/// Logs by another level from now on. Fails before [`init`].
pub fn set_level(level: Level) -> anyhow::Result<()> {
    FILTER.get().context("logging isn't set up yet")?(level.0).context("cannot change the log level")
}

/// Starts logging and metrics. Once for each process: a second call is an error.
pub fn init(settings: &Settings) -> anyhow::Result<MetricsHandle> {
    let Level(filter) = level(&settings.level)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would be said on stderr, and where that is what failed (`2>&1 | head`), saying it panics.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    let (started, set_filter): (_, SetFilter) = match settings.format {
        Format::Text => {
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            (builder.try_init(), Box::new(move |filter| handle.reload(filter)))
        }
        Format::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            (builder.try_init(), Box::new(move |filter| handle.reload(filter)))
        }
    };
    started.map_err(|error| anyhow::anyhow!("logging is set up already: {error}"))?;
    // It is the first: a second one has failed above.
    FILTER.set(set_filter).ok();
    log_panics();
    let handle = recorder()?.install_recorder().context("metrics are set up already")?;
    describe_metrics();
    keep_up(handle.clone())?;
    Ok(MetricsHandle(handle))
}

/// The error with all its sources, `cannot open x: permission denied`.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn recorder() -> anyhow::Result<PrometheusBuilder> {
    Ok(PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Full(FRESHNESS.0.to_owned()), &FRESHNESS.1)?
        .set_buckets(&SIZES)?)
}

/// What each metric is, for those who read `/metrics`.
fn describe_metrics() {
    for metric in metric::ALL {
        match metric.kind {
            metric::Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            metric::Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            metric::Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

/// A thread and not a task, so that it doesn't matter whether a runtime is there yet. It ends with the process.
fn keep_up(handle: PrometheusHandle) -> anyhow::Result<()> {
    let upkeep = move || {
        loop {
            std::thread::sleep(UPKEEP);
            handle.run_upkeep();
        }
    };
    std::thread::Builder::new().name("metrics".to_owned()).spawn(upkeep).context("cannot start the metrics thread")?;
    Ok(())
}

/// A panic is one line of the log like everything else.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("(no message)");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        match at_work::file() {
            Some(file) => tracing::error!(place, panic = text, file = %file.display(),
                "panicked while it worked on this file, which is damaged, unless this is a fault of logmesh itself; \
                 if it happens again, stop, and put back a copy of the file or move it away"),
            None => tracing::error!(place, panic = text, "panicked: a fault of logmesh itself"),
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_every_cause() {
        let source = std::io::Error::other("device gone");
        let error = crate::ListenError::Refused { what: "gRPC", addr: "127.0.0.1:1".parse().unwrap(), source };
        assert_eq!(chain(&error), "cannot listen on 127.0.0.1:1 for gRPC: device gone");
    }

    #[test]
    fn histograms_have_buckets_by_their_unit() {
        let recorder = recorder().unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("logmesh_test_wait_seconds").record(0.002);
            metrics::histogram!("logmesh_freshness_seconds").record(70.0);
            metrics::histogram!("logmesh_test_chunk_bytes").record(5_000.0);
        });
        let text = recorder.handle().render();
        assert!(text.contains(r#"logmesh_test_wait_seconds_bucket{le="0.0025"} 1"#), "{text}");
        assert!(text.contains(r#"logmesh_test_chunk_bytes_bucket{le="16384"} 1"#), "{text}");
        assert!(text.contains(r#"logmesh_freshness_seconds_bucket{le="300"} 1"#), "{text}");
    }

    #[test]
    fn it_is_set_up_once_and_a_bad_level_is_refused() {
        let bad = Settings { level: "logmesh=loud".to_owned(), ..Settings::default() };
        assert!(init(&bad).unwrap_err().to_string().contains("loud"));
        assert!(set_level(level("info").unwrap()).is_err(), "it isn't set up");
        init(&Settings::default()).unwrap();
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        set_level(level("debug").unwrap()).unwrap();
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        for bad in ["logmesh=loud", "chatty", "info,chatty", ""] {
            assert!(level(bad).is_err(), "{bad:?}");
        }
        assert!(init(&Settings::default()).unwrap_err().to_string().contains("already"));
    }
}
