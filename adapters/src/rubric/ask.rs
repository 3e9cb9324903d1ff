//! Requests: which are repeated, and how long it waits between them. The deadline over all of them is the caller's.

use std::time::Duration;

/// Largest body of a reply.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Before the first repetition; twice as long before each next one, up to [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Where requests go.
#[derive(Clone)]
pub(super) struct Endpoint {
    client: reqwest::Client,
    url: String,
    key: Option<String>,
}

/// Why an attempt gave nothing.
enum Failure {
    /// It may go better next time.
    Passing(String),
    Lasting(String),
}

impl Endpoint {
    /// # Errors
    /// Why there is no client, in words.
    pub(super) fn new(url: &str, key: Option<String>) -> Result<Endpoint, String> {
        // A connection that was idle may be closed just as a request is written to it.
        let client = reqwest::Client::builder().pool_max_idle_per_host(0);
        let client = client
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        Ok(Endpoint {
            client: client.build().map_err(|error| error.to_string())?,
            url: format!("{}/chat/completions", url.trim_end_matches('/')),
            key,
        })
    }

    /// The body of the reply to `body`, asked once and repeated `retries` times.
    pub(super) async fn ask(&self, body: &str, retries: u32) -> Result<Vec<u8>, String> {
        let mut pause = PAUSE;
        let mut left = retries;
        loop {
            match self.attempt(body).await {
                Ok(reply) => return Ok(reply),
                Err(Failure::Passing(_)) if left > 0 => {
                    tokio::time::sleep(pause).await;
                    pause = MAX_PAUSE.min(2 * pause);
                    left -= 1;
                }
                Err(Failure::Passing(problem)) => {
                    return Err(format!("{problem}, after {} attempts", retries + 1));
                }
                Err(Failure::Lasting(problem)) => return Err(problem),
            }
        }
    }

    async fn attempt(&self, body: &str) -> Result<Vec<u8>, Failure> {
        // The address is the user's own; what lies behind it may hold a key.
        let lost = |error: reqwest::Error| Failure::Passing(error.without_url().to_string());
        let mut request = self.client.post(&self.url);
        request = request.header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let mut response = request.body(body.to_string()).send().await.map_err(lost)?;
        let status = response.status();
        if !status.is_success() {
            let problem = format!("HTTP status {status}");
            return Err(match status.as_u16() {
                429 | 500.. => Failure::Passing(problem),
                _ => Failure::Lasting(problem),
            });
        }
        let mut reply = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if reply.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(Failure::Lasting("a reply that is too long".to_string()));
            }
            reply.extend_from_slice(&chunk);
        }
        Ok(reply)
    }
}
