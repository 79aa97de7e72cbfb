"""An HTTP server that misbehaves on demand: what a real OpenAI-compatible server does only on a bad day."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

Behavior = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RudeServer:
    """Answers /models and streams truly until `behavior` is set. Speaks as much HTTP/1.1 as the client needs."""

    def __init__(self) -> None:
        self.port = 0
        self.behavior: Behavior = stream(text("yes"), finish("stop"), usage(7, 1))
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        """Path, headers and body of each request."""
        self.connections = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @classmethod
    @asynccontextmanager
    async def serve(cls, tls: ssl.SSLContext | None = None) -> AsyncIterator["RudeServer"]:
        it = cls()
        server = await asyncio.start_server(it._connection, "127.0.0.1", 0, ssl=tls)
        it.port = server.sockets[0].getsockname()[1]
        try:
            yield it
        finally:
            server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                request, *lines = head.decode().strip().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                path = request.split(" ")[1]
                self.requests.append((path, headers, json.loads(body) if body else None))
                if path.endswith("/models"):
                    await status(200, {"data": [{"id": "m"}]})(reader, writer)
                else:
                    await self.behavior(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            with suppress(ConnectionError):
                writer.close()


def status(code: int, body: object = None, **headers: str) -> Behavior:
    """An answer that is no stream."""

    async def behave(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
        writer.write(f"HTTP/1.1 {code} Any\r\n{lines}\r\n".encode() + data)
        await writer.drain()

    return behave


def stream(*events: object, then: str = "done", pause_s: float = 0.0) -> Behavior:
    """A stream of events. `then` is how it goes on: "done" ends it as it should be, "end" without [DONE], "cut"
    breaks the connection, "close" closes it after a true end, "silence" says nothing more."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in events:
            data = event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n\n".encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
            await asyncio.sleep(pause_s)
        match then:
            case "silence":
                await reader.read()
            case "cut":
                writer.transport.abort()
            case _:
                done = b"e\r\ndata: [DONE]\n\n\r\n" if then != "end" else b""
                writer.write(done + b"0\r\n\r\n")
                await writer.drain()
                if then == "close":
                    writer.close()

    return behave


def text(content: str, **choice: object) -> dict[str, Any]:
    """A chunk of both APIs at once."""
    return {"choices": [{"index": 0, "text": content, "delta": {"content": content}, "finish_reason": None, **choice}]}


def finish(reason: str, **choice: object) -> dict[str, Any]:
    """The chunk that ends an answer."""
    return {"choices": [{"index": 0, "text": "", "delta": {}, "finish_reason": reason, **choice}]}


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """The chunk behind it."""
    details = {"cached_tokens": cached}
    told = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    return {"choices": [], "usage": told}
