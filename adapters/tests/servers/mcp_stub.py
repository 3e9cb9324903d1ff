"""An MCP server of one era, in Python's own library, that says nothing beyond the protocol.

Arguments: ERA TRANSPORT LOG [OPTION...]; ERA is legacy, modern, silent (a legacy one that passes over what it does not know)
or dying (one that ends over it); TRANSPORT is stdio or http. Every message goes to the file LOG, and so does the start.
"""
import http.server
import json
import os
import sys
import time
import uuid

ERA, TRANSPORT, LOG, *OPTIONS = sys.argv[1:]
MODERN = "2026-07-28"
EMPTY = {"type": "object", "properties": {}}
TOOLS = [
    {"name": "count", "description": "Counts.", "inputSchema": EMPTY},
    {"name": "echo", "description": "Says it again.", "inputSchema": {
        "type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"], "additionalProperties": False}},
    {"name": "wrong", "inputSchema": EMPTY},
    {"name": "broken", "inputSchema": EMPTY},
    {"name": "ask", "inputSchema": EMPTY},
    {"name": "structured", "inputSchema": EMPTY},
    {"name": "die", "inputSchema": EMPTY},
    {"name": "hang", "inputSchema": EMPTY},
]
count = 0


def log(line):
    with open(LOG, "a") as file:
        file.write(line + "\n")


def text(words, **more):
    return {"content": [{"type": "text", "text": words}], **more}


def call(name, arguments):
    global count
    if name == "count":
        count += 1
        return text(str(count))
    if name == "echo":
        return {"content": [{"type": "text", "text": arguments["text"]},
                            {"type": "image", "data": "AAAA", "mimeType": "image/png"}]}
    if name == "wrong":
        return text("no such file", isError=True)
    if name == "structured":
        return {"content": [], "structuredContent": {"answer": 42}}
    if name == "ask":
        return {"resultType": "input_required", "inputRequests": {}, "requestState": "s"}
    if name == "die":
        os._exit(1)
    if name == "hang":
        time.sleep(60)
    return None


def answer(message):
    """The reply to a message, or None."""
    method, params = message.get("method"), message.get("params") or {}
    log(f"{method} {params.get('name', '')}".strip())
    if "id" not in message:
        return None

    def reply(result):
        if ERA == "modern":
            result.setdefault("resultType", "complete")
        return {"jsonrpc": "2.0", "id": message["id"], "result": result}

    def error(code, words):
        return {"jsonrpc": "2.0", "id": message["id"], "error": {"code": code, "message": words}}

    server = {"name": "stub", "version": "1"}
    if ERA == "modern":
        meta = params.get("_meta", {})
        if meta.get("io.modelcontextprotocol/protocolVersion") != MODERN:
            return error(-32022, "unsupported version")
        if method == "server/discover":
            return reply({"supportedVersions": [MODERN], "capabilities": {"tools": {}}, "serverInfo": server,
                          "ttlMs": 1000, "cacheScope": "private"})
    elif method == "initialize":
        return reply({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": server})
    if method == "tools/list":
        # Two pages.
        half = len(TOOLS) // 2
        page = {"tools": TOOLS[half:]} if params.get("cursor") else {"tools": TOOLS[:half], "nextCursor": "2"}
        return reply({**page, "ttlMs": 1000, "cacheScope": "private"} if ERA == "modern" else page)
    if method == "tools/call":
        result = call(params["name"], params.get("arguments") or {})
        return error(-32603, "it broke") if result is None else reply(result)
    if ERA == "dying":
        os._exit(1)
    return None if ERA == "silent" else error(-32601, "unknown method")


class Request(http.server.BaseHTTPRequestHandler):
    sessions = set()

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        session = self.headers.get("Mcp-Session-Id")
        headers = {}
        if ERA == "modern":
            names = {"Mcp-Method": message.get("method"), "MCP-Protocol-Version": MODERN}
            if message.get("method") == "tools/call":
                names["Mcp-Name"] = message["params"]["name"]
            for name, value in names.items():
                if self.headers.get(name) != value:
                    log(f"bad header {name}")
                    return self.send(400, b"")
        elif message.get("method") == "initialize":
            session = uuid.uuid4().hex
            self.sessions.add(session)
            headers["Mcp-Session-Id"] = session
        elif session is None:
            log(message.get("method"))
            return self.send(400, b"")
        elif session not in self.sessions:
            return self.send(404, b"")
        elif (message.get("params") or {}).get("name") == "die":
            # The session is lost, the server is not.
            self.sessions.clear()
            return self.send(404, b"")
        reply = answer(message)
        if reply is None:
            return self.send(202, b"")
        body = json.dumps(reply).encode()
        if message["method"] == "tools/call" and "sse" in OPTIONS:
            headers["Content-Type"] = "text/event-stream"
            body = b"event: message\ndata: " + body + b"\n\n"
        self.send(200, body, **headers)

    def do_GET(self):
        self.send(405, b"")

    def do_DELETE(self):
        log("DELETE")
        self.sessions.discard(self.headers.get("Mcp-Session-Id"))
        self.send(200, b"")

    def send(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


log("start")
if TRANSPORT == "http":
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Request)
    print(f"listening on http://127.0.0.1:{listener.server_address[1]}/mcp", flush=True)
    listener.serve_forever()
for line in sys.stdin:
    reply = answer(json.loads(line))
    if reply is not None:
        print(json.dumps(reply), flush=True)
