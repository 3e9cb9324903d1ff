//! Prometheus endpoint: `GET /metrics` answers with the figures of the newest step as gauges.
//!
//! A figure `reward_mean` is the gauge `baleen_reward_mean` with the labels `run` and `stage`; what is
//! counted by age or by environment has the label `age` or `environment` too. The held-out pass rate is that of the newest evaluation. The
//! server lives on a thread of its own and answers from a snapshot that the run replaces after each step,
//! so however many ask, or however slowly they read, the run doesn't wait for them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

use crate::figures::{Figure, figures};
use crate::metrics::StepMetrics;
use crate::run_folder::now;

/// Connections served at once; more wait.
const MAX_CONNECTIONS: usize = 16;
/// A client that sends no request for so long is let go.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between attempts to accept a connection where the system refuses, for want of file handles say.
const PAUSE: Duration = Duration::from_secs(1);
/// Version 0.0.4 of the text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Kept until the next evaluation.
const HELD_OUT: &str = "held_out_pass_rate";

/// An address that is ours and not served yet.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
}

impl Endpoint {
    /// Takes `address`, such as `127.0.0.1:9464`; port 0 takes any free one.
    ///
    /// # Errors
    /// No such address here, or it is in use.
    pub fn bind(address: &str) -> io::Result<Endpoint> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Endpoint { listener, address })
    }

    /// Where to look: `http://127.0.0.1:9464/metrics`.
    pub fn url(&self) -> String {
        format!("http://{}/metrics", self.address)
    }

    /// Answers for the run named `run` from now on, until the process ends.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub fn serve(self, run: &str) -> io::Result<Exporter> {
        let exporter = Exporter {
            newest: Arc::new(Mutex::new(Newest::at_start(run))),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let served = exporter.clone();
        let work = move || {
            runtime.block_on(async {
                match tokio::net::TcpListener::from_std(self.listener) {
                    Ok(listener) => accept(listener, served).await,
                    Err(error) => tracing::warn!("no metrics for Prometheus: {error}"),
                }
            });
        };
        std::thread::Builder::new()
            .name("prometheus".to_string())
            .spawn(work)?;
        Ok(exporter)
    }
}

/// The run's end of a served [`Endpoint`].
#[derive(Clone, Debug)]
pub struct Exporter {
    newest: Arc<Mutex<Newest>>,
}

impl Exporter {
    /// Shows the figures of the steps that earlier processes made, in order: no scrape sees one before the last.
    pub fn show_earlier(&self, steps: &[StepMetrics]) {
        let mut newest = self.newest();
        steps.iter().for_each(|step| newest.show(step));
    }

    /// Shows the figures of a step made just now.
    pub fn show(&self, metrics: &StepMetrics) {
        let mut newest = self.newest();
        newest.show(metrics);
        newest.last_step_secs = now().as_secs_f64();
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        // A snapshot is replaced field by field, each of them sound whatever happened to the others.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gauges of one name, told apart by a label.
type Labelled = Family<[(&'static str, String); 1], Gauge<f64, AtomicU64>>;

/// What a scrape is answered from.
#[derive(Debug)]
struct Newest {
    run: String,
    stage: String,
    steps: u64,
    figures: Vec<Figure>,
    last_step_secs: f64,
}

impl Newest {
    fn at_start(run: &str) -> Newest {
        Newest {
            run: run.to_string(),
            stage: String::new(),
            steps: 0,
            figures: Vec::new(),
            last_step_secs: now().as_secs_f64(),
        }
    }

    fn show(&mut self, metrics: &StepMetrics) {
        let mut new = figures(metrics);
        if metrics.held_out_pass_rate.is_none() {
            let held_out = self.figures.iter().find(|figure| figure.name == HELD_OUT);
            new.extend(held_out.cloned());
        }
        self.stage = metrics.stage.clone();
        self.steps = metrics.global_step;
        self.figures = new;
    }

    /// The snapshot in the text format.
    fn text(&self) -> String {
        let label =
            |name: &'static str, value: &String| (Cow::from(name), Cow::from(value.clone()));
        let mut of_run =
            Registry::with_prefix_and_labels("baleen", [label("run", &self.run)].into_iter());
        of_run.register(
            "steps",
            "Optimizer steps of all stages so far",
            ConstCounter::new(self.steps),
        );
        of_run.register(
            "last_step_timestamp_seconds",
            "When the newest step was made or, before the first of this process, when it started",
            ConstGauge::new(self.last_step_secs),
        );
        let of_stage = of_run.sub_registry_with_label(label("stage", &self.stage));
        let mut labelled: BTreeMap<&str, Labelled> = BTreeMap::new();
        for figure in &self.figures {
            match &figure.label {
                None => of_stage.register(
                    figure.name.as_str(),
                    help(&figure.name),
                    ConstGauge::new(figure.value),
                ),
                Some(label) => {
                    let family = labelled.entry(&figure.name).or_default();
                    let labels = [label.clone()];
                    family.get_or_create(&labels).set(figure.value);
                }
            }
        }
        for (name, family) in labelled {
            of_stage.register(name, help(name), family);
        }
        let mut text = String::new();
        prometheus_text::encode(&mut text, &of_run).expect("a string takes all text");
        text
    }
}

fn help(name: &str) -> String {
    match name {
        HELD_OUT => format!("{HELD_OUT} of the newest evaluation"),
        name => format!("{name} of the newest step"),
    }
}

/// Serves whoever connects.
async fn accept(listener: tokio::net::TcpListener, exporter: Exporter) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let slot = slots.clone().acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("prometheus: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let exporter = exporter.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request, &exporter);
                async { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!("prometheus: {error}");
            }
            drop(slot);
        });
    }
}

fn answer<B>(request: &Request<B>, exporter: &Exporter) -> Response<String> {
    let mut response = Response::new(String::new());
    let mut header = |name, value: &'static str| {
        let value = hyper::header::HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    };
    if request.uri().path() != "/metrics" {
        header(CONTENT_TYPE, "text/plain; charset=utf-8");
        *response.status_mut() = StatusCode::NOT_FOUND;
        *response.body_mut() = "the figures are at /metrics\n".to_string();
    } else if ![Method::GET, Method::HEAD].contains(request.method()) {
        header(ALLOW, "GET, HEAD");
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    } else {
        header(CONTENT_TYPE, TEXT_FORMAT);
        *response.body_mut() = exporter.newest().text();
    }
    response
}

#[cfg(test)]
mod tests;
