//! Metrics and the admin endpoint, alike in every program.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

/// The endpoint could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its listener.
    #[error("cannot serve --admin")]
    Serve(#[from] std::io::Error),
    /// Its recorder.
    #[error("cannot set up metrics")]
    Metrics(#[from] BuildError),
}

/// Between two times at which what histograms were given is put into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

type Page = Box<dyn Fn() -> String + Send + Sync>;
type Update = Box<dyn Fn() + Send + Sync>;

/// What the admin endpoint shows.
pub struct Admin {
    metrics: PrometheusHandle,
    ready: AtomicBool,
    /// The JSON document of /verdict, once there is one.
    verdict: OnceLock<Page>,
    /// The HTML of /, once there is one.
    page: OnceLock<Page>,
    /// Brings the metrics up to date before they are shown.
    update: OnceLock<Update>,
}

impl Admin {
    /// Installs the process's metrics recorder, and serves on a listener that does not block: alive
    /// and not yet ready. `buckets` gives the bounds, in seconds, of every histogram by its full name.
    pub fn start(
        listener: std::net::TcpListener,
        buckets: &[(&str, &[f64])],
    ) -> Result<Arc<Self>, StartError> {
        let listener = TcpListener::from_std(listener)?;
        let mut builder = PrometheusBuilder::new();
        for (name, bounds) in buckets {
            builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), bounds)?;
        }
        let metrics = builder.install_recorder()?;
        let admin = Arc::new(Self::new(metrics.clone()));
        tokio::spawn(serve(listener, Arc::clone(&admin)));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                metrics.run_upkeep();
            }
        });
        Ok(admin)
    }

    fn new(metrics: PrometheusHandle) -> Self {
        Self {
            metrics,
            ready: AtomicBool::new(false),
            verdict: OnceLock::new(),
            page: OnceLock::new(),
            update: OnceLock::new(),
        }
    }

    /// Adds /verdict. The first call counts.
    pub fn set_verdict(&self, json: impl Fn() -> String + Send + Sync + 'static) {
        let _ = self.verdict.set(Box::new(json));
    }

    /// Sets what is done before each answer to /metrics. The first call counts.
    pub fn before_metrics(&self, update: impl Fn() + Send + Sync + 'static) {
        let _ = self.update.set(Box::new(update));
    }

    /// Adds /. The first call counts.
    pub fn set_page(&self, html: impl Fn() -> String + Send + Sync + 'static) {
        let _ = self.page.set(Box::new(html));
    }

    /// Changes what /readyz says.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// The answer to one request.
    fn respond(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        const TEXT: &str = "text/plain; charset=utf-8";
        // The exposition format's version (Prometheus, text format 0.0.4).
        const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
        const HTML: &str = "text/html; charset=utf-8";
        let missing = || (StatusCode::NOT_FOUND, TEXT, "not found\n".to_owned());
        let shown = |page: &OnceLock<Page>, kind| {
            page.get().map_or_else(missing, |page| (StatusCode::OK, kind, page()))
        };
        let (status, kind, body) = match path {
            _ if method != Method::GET && method != Method::HEAD => {
                (StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n".to_owned())
            }
            "/metrics" => {
                if let Some(update) = self.update.get() {
                    update();
                }
                (StatusCode::OK, METRICS, self.metrics.render())
            }
            "/healthz" => (StatusCode::OK, TEXT, "alive\n".to_owned()),
            "/readyz" if self.ready.load(Ordering::Acquire) => {
                (StatusCode::OK, TEXT, "ready\n".to_owned())
            }
            "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n".to_owned()),
            "/verdict" => shown(&self.verdict, "application/json"),
            "/" => shown(&self.page, HTML),
            _ => missing(),
        };
        let body = if method == Method::HEAD { String::new() } else { body };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

/// Answers requests on a bound listener until dropped.
async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // EMFILE and its like pass; a tight loop would make them worse.
                tracing::warn!(error = %e, "admin endpoint: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let answer = admin.respond(request.method(), request.uri().path());
                async move { Ok::<_, Infallible>(answer) }
            });
            // A scraper that goes away is not our error.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn admin() -> Admin {
        Admin::new(PrometheusBuilder::new().build_recorder().handle())
    }

    /// Readiness follows the program, health does not.
    #[test]
    fn readiness_follows_the_program() {
        let a = admin();
        assert_eq!(a.respond(&Method::GET, "/readyz").status(), 503);
        assert_eq!(a.respond(&Method::GET, "/healthz").status(), 200);
        a.set_ready(true);
        assert_eq!(a.respond(&Method::GET, "/readyz").status(), 200);
    }

    /// Unknown paths and methods are refused; / and /verdict exist where they were given.
    #[test]
    fn refuses_what_it_does_not_serve() {
        let a = admin();
        assert_eq!(a.respond(&Method::GET, "/").status(), 404);
        assert_eq!(a.respond(&Method::POST, "/metrics").status(), 405);
        assert_eq!(a.respond(&Method::GET, "/verdict").status(), 404);
        a.set_verdict(|| "{}".to_owned());
        let r = a.respond(&Method::GET, "/verdict");
        assert_eq!(r.headers()["content-type"], "application/json");
        let body = futures_now(r.into_body().collect());
        assert_eq!(body.to_bytes(), "{}");
        a.set_page(|| "<p>".to_owned());
        let r = a.respond(&Method::GET, "/");
        assert_eq!(r.headers()["content-type"], "text/html; charset=utf-8");
    }

    /// A body that is already there needs no runtime.
    fn futures_now<F: Future<Output = Result<T, Infallible>>, T>(f: F) -> T {
        let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let Ok(v) = rt.block_on(f);
        v
    }
}
