"""A server of the official Python SDK, on standard streams or, with `http PORT`, over HTTP on 127.0.0.1."""
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


if sys.argv[1:2] == ["http"]:
    server.run(transport="streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
else:
    server.run(transport="stdio")
