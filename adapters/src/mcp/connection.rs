//! One connection to a server: both eras of the protocol, over a program's standard streams or HTTP.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use environments::{Fault, FaultKind, ToolDef, ToolOutput};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ProtocolVersion, Tool,
};
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, RoleClient, RunningService, ServiceError,
    serve_client_with_lifecycle,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::{Map, Value};

use crate::config::{Connect, Era, McpConfig, secs};
use crate::program::Running;
use crate::runtime;

/// How long rmcp waits for a legacy server that passes over `server/discover`.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a connection may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(3);
/// Characters of a server's words that reach a fault's reason.
const MAX_REASON_CHARS: usize = 300;

/// A server, and its era once it is known.
#[derive(Debug)]
pub(crate) struct Server {
    config: McpConfig,
    era: Mutex<Era>,
}

/// A client's half of a session.
type Client = RunningService<RoleClient, ()>;

/// An open connection. Dropping it closes it, and ends the program.
#[derive(Debug)]
pub(crate) struct Connection {
    name: String,
    call_secs: f64,
    list_secs: f64,
    client: Option<Arc<Client>>,
    /// Ended after the client, which closes its input.
    _program: Option<Running>,
}

impl Server {
    pub(crate) fn new(config: McpConfig) -> Server {
        Server {
            era: Mutex::new(config.era),
            config,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// The server can't be reached in time, or speaks neither era.
    pub(crate) fn connect(&self) -> Result<Connection, Fault> {
        let era = *self.era.lock().expect("nothing panics under this lock");
        let connected = self.connect_as(era);
        let connected = match (connected, era) {
            // A legacy server may end over a message that it does not know.
            (Err(first), Era::Auto) => self.connect_as(Era::Legacy).map_err(|_| first),
            (connected, _) => connected,
        };
        let (connection, found) = connected?;
        *self.era.lock().expect("nothing panics under this lock") = found;
        Ok(connection)
    }

    fn connect_as(&self, era: Era) -> Result<(Connection, Era), Fault> {
        let modern = vec![ProtocolVersion::V_2026_07_28];
        let lifecycle = match era {
            Era::Legacy => ClientLifecycleMode::Initialize,
            Era::Modern => ClientLifecycleMode::Discover {
                preferred_versions: modern,
            },
            Era::Auto => ClientLifecycleMode::Auto {
                preferred_versions: modern,
                legacy_version: None,
            },
        };
        let mut patience = secs(self.config.deadlines.connect_secs);
        if era == Era::Auto {
            patience += SILENCE;
        }
        let (program, client) = match &self.config.connect {
            Connect::Program(program) => {
                let (running, stdin, stdout) = Running::start(program).map_err(|error| {
                    let words = format!("{} can't be started: {error}", program.command[0]);
                    self.fault(FaultKind::Infra, &words)
                })?;
                let client = runtime::within(patience, async move {
                    let stdin = tokio::process::ChildStdin::from_std(stdin);
                    let stdout = tokio::process::ChildStdout::from_std(stdout);
                    let (stdin, stdout) = (
                        stdin.map_err(transport_error)?,
                        stdout.map_err(transport_error)?,
                    );
                    serve_client_with_lifecycle((), (stdout, stdin), lifecycle)
                        .await
                        .map_err(|error| initialize_error(&error))
                });
                (Some(running), client)
            }
            Connect::Http(address) => {
                let url = address.url.as_str();
                let mut config = StreamableHttpClientTransportConfig::with_uri(url);
                let token = address.token();
                config.auth_header = token.map_err(|words| self.fault(FaultKind::Infra, &words))?;
                // A session that the server lost is lost: what it held can't be made again.
                config.reinit_on_expired_session = false;
                let client = runtime::within(patience, async move {
                    let transport = StreamableHttpClientTransport::from_config(config);
                    serve_client_with_lifecycle((), transport, lifecycle)
                        .await
                        .map_err(|error| initialize_error(&error))
                });
                (None, client)
            }
            Connect::Socket(_) => {
                return Err(self.fault(FaultKind::Protocol, "there is no MCP over this socket"));
            }
        };
        let client = client?
            .ok_or_else(|| self.fault(FaultKind::Timeout, "it did not answer in time"))?
            .map_err(|(kind, words)| self.fault(kind, &words))?;
        let version = client.peer_info().map(|info| info.protocol_version.clone());
        let found = match version {
            Some(version) if version >= ProtocolVersion::V_2026_07_28 => Era::Modern,
            _ => Era::Legacy,
        };
        let connection = Connection {
            name: self.config.name.clone(),
            call_secs: self.config.deadlines.call_secs,
            list_secs: self.config.deadlines.open_secs,
            client: Some(Arc::new(client)),
            _program: program,
        };
        Ok((connection, found))
    }

    fn fault(&self, kind: FaultKind, words: &str) -> Fault {
        fault(&self.config.name, kind, words)
    }
}

impl Connection {
    /// The server's tools.
    ///
    /// # Errors
    /// A fault of the service.
    pub(crate) fn tools(&self) -> Result<Vec<ToolDef>, Fault> {
        let client = self.client();
        let listed = runtime::within(secs(self.list_secs), async move {
            client.list_all_tools().await
        });
        let listed = self.reply("tools/list", listed?)?;
        Ok(listed.into_iter().map(tool_def).collect())
    }

    /// Calls a tool once.
    ///
    /// # Errors
    /// A fault of the service; what the tool calls an error is output.
    pub(crate) fn call(
        &self,
        name: &str,
        arguments: &Map<String, Value>,
    ) -> Result<ToolOutput, Fault> {
        let params = CallToolRequestParams::new(name.to_string()).with_arguments(arguments.clone());
        let client = self.client();
        // Where the time is up, dropping the future tells the server so.
        let response = runtime::within(secs(self.call_secs), async move {
            client.call_tool_once(params).await
        });
        match self.reply("tools/call", response?)? {
            CallToolResponse::Complete(result) => Ok(output(&result)),
            CallToolResponse::InputRequired(_) => Ok(ToolOutput::error(
                "Error: the tool asks for further input, which can't be given here.",
            )),
            // What goes on in the background, and whatever else comes later.
            _ => Ok(ToolOutput::error(
                "Error: the tool gave no result that can be read here.",
            )),
        }
    }

    fn client(&self) -> Arc<Client> {
        self.client.clone().expect("it is taken by drop alone")
    }

    fn reply<T>(&self, method: &str, reply: Option<Result<T, ServiceError>>) -> Result<T, Fault> {
        let error = match reply {
            Some(Ok(reply)) => return Ok(reply),
            None => (FaultKind::Timeout, "no reply in time".to_string()),
            Some(Err(error)) => service_error(&error),
        };
        let words = format!("{method}: {}", error.1);
        Err(fault(&self.name, error.0, &words))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // No call is under way: each was waited for or given up.
        if let Some(client) = self.client.take().and_then(Arc::into_inner) {
            let _ = runtime::within(GOODBYE, client.cancel());
        }
    }
}

fn fault(name: &str, kind: FaultKind, words: &str) -> Fault {
    let words: String = words.chars().take(MAX_REASON_CHARS).collect();
    Fault::new(kind, format!("server {name}: {words}"))
}

fn transport_error(error: std::io::Error) -> (FaultKind, String) {
    (FaultKind::Infra, error.to_string())
}

fn initialize_error(error: &ClientInitializeError) -> (FaultKind, String) {
    let kind = match error {
        ClientInitializeError::ConnectionClosed(_)
        | ClientInitializeError::TransportError { .. }
        | ClientInitializeError::Cancelled => FaultKind::Infra,
        _ => FaultKind::Protocol,
    };
    (kind, error.to_string())
}

fn service_error(error: &ServiceError) -> (FaultKind, String) {
    let kind = match error {
        ServiceError::TransportSend(_)
        | ServiceError::TransportClosed
        | ServiceError::Cancelled { .. } => FaultKind::Infra,
        ServiceError::Timeout { .. } => FaultKind::Timeout,
        _ => FaultKind::Protocol,
    };
    (kind, error.to_string())
}

fn tool_def(tool: Tool) -> ToolDef {
    ToolDef {
        name: tool.name.into_owned(),
        description: tool.description.unwrap_or_default().into_owned(),
        parameters: Value::Object(tool.input_schema.as_ref().clone()),
    }
}

fn output(result: &CallToolResult) -> ToolOutput {
    let texts = result.content.iter().map(|block| match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(_) => "[image left out]".to_string(),
        ContentBlock::Audio(_) => "[audio left out]".to_string(),
        _ => "[resource left out]".to_string(),
    });
    let mut content = texts.collect::<Vec<_>>().join("\n");
    if let (true, Some(structured)) = (result.content.is_empty(), &result.structured_content) {
        content = structured.to_string();
    }
    ToolOutput {
        content,
        is_error: result.is_error == Some(true),
    }
}
