//! One way to a server: lines, or HTTP with a request a message.

use std::time::Duration;

use serde_json::{Value, json};

use crate::agentenv::lines::Lines;
use crate::agentenv::wire::{CallError, RpcError};
use crate::config::Connect;
use crate::runtime;

/// Where requests go.
#[derive(Clone)]
pub(crate) struct Http {
    client: reqwest::Client,
    url: String,
    token: Option<String>,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http").finish_non_exhaustive()
    }
}

/// Largest body of an HTTP reply.
const MAX_BODY_BYTES: usize = 16 << 20;

#[derive(Debug)]
pub(crate) enum Channel {
    Lines(Lines),
    Http(Http),
}

impl Channel {
    /// # Errors
    /// Why there is none, in words.
    pub(crate) fn open(connect: &Connect) -> Result<Channel, String> {
        match connect {
            Connect::Program(program) => Lines::start(program)
                .map(Channel::Lines)
                .map_err(|error| format!("{} can't be started: {error}", program.command[0])),
            Connect::Socket(path) => Lines::connect(path)
                .map(Channel::Lines)
                .map_err(|error| format!("{}: {error}", path.display())),
            Connect::Http(address) => {
                // A connection that was idle may be closed just as a call is written to it.
                let client = reqwest::Client::builder().pool_max_idle_per_host(0);
                let client = client
                    .redirect(reqwest::redirect::Policy::none())
                    .no_proxy();
                let client = client.build().map_err(|error| error.to_string())?;
                Ok(Channel::Http(Http {
                    client,
                    url: address.url.clone(),
                    token: address.token()?,
                }))
            }
        }
    }

    /// Asks and waits for the reply, at most `deadline`.
    pub(crate) fn request(
        &self,
        method: &str,
        params: &Value,
        deadline: Duration,
    ) -> Result<Value, CallError> {
        match self {
            Channel::Lines(lines) => lines.request(method, params, deadline),
            Channel::Http(http) => {
                let posted = post(http.clone(), message(method, params));
                match runtime::within(deadline, posted) {
                    Ok(Some(result)) => result,
                    Ok(None) => Err(CallError::Timeout),
                    Err(fault) => Err(CallError::Lost(fault.reason)),
                }
            }
        }
    }

    /// Asks without waiting.
    pub(crate) fn tell(&self, method: &str, params: &Value) {
        match self {
            Channel::Lines(lines) => lines.tell(method, params),
            Channel::Http(http) => {
                let posted = post(http.clone(), message(method, params));
                runtime::spawn(Duration::from_secs(10), posted);
            }
        }
    }

    /// Whether it is over for good.
    pub(crate) fn has_ended(&self) -> bool {
        match self {
            Channel::Lines(lines) => lines.has_ended(),
            Channel::Http(_) => false,
        }
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        if let Channel::Lines(lines) = self {
            lines.kill();
        }
    }

    /// Number of the server's process, where we started it.
    pub(crate) fn process_id(&self) -> Option<u32> {
        match self {
            Channel::Lines(lines) => lines.process_id(),
            Channel::Http(_) => None,
        }
    }
}

fn message(method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

async fn post(http: Http, message: Value) -> Result<Value, CallError> {
    // The address is the user's own; what lies behind it may hold a token.
    let lost = |error: reqwest::Error| CallError::Lost(error.without_url().to_string());
    let mut request = http.client.post(http.url);
    request = request.header("content-type", "application/json");
    if let Some(token) = http.token {
        request = request.bearer_auth(token);
    }
    let mut response = request
        .body(message.to_string())
        .send()
        .await
        .map_err(lost)?;
    let status = response.status();
    if !status.is_success() {
        return Err(CallError::Lost(format!("HTTP status {status}")));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(lost)? {
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(CallError::Nonsense("a reply that is too long".to_string()));
        }
        body.extend_from_slice(&chunk);
    }
    let mut reply: Value = serde_json::from_slice(&body)
        .map_err(|_| CallError::Nonsense("a reply that is not JSON".to_string()))?;
    match serde_json::from_value::<RpcError>(reply["error"].take()) {
        Ok(error) => Err(CallError::Refused(error)),
        Err(_) => Ok(reply["result"].take()),
    }
}
