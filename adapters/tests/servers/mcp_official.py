"""A server of the official Python SDK, on standard streams or, with `http`, over HTTP on a free port of 127.0.0.1."""
import socket
import sys

from mcp.server import MCPServer

server = MCPServer("official")
counted = []


@server.tool()
def count() -> str:
    """Counts."""
    counted.append(None)
    return str(len(counted))


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def fail() -> str:
    """Always fails."""
    raise ValueError("as asked")


if sys.argv[1:] == ["http"]:
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    app = server.streamable_http_app()
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
else:
    server.run(transport="stdio")
