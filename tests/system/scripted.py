"""A model that follows its prompt to the letter, behind an OpenAI-compatible API, and the tools that it calls.

Both are one real HTTP server, in a thread of its own. What the model says follows from the last turn alone:

  call NAME JSON [and …]   tool calls with these arguments
  say TEXT                 the text
  a tool's results         "So: " and what they say
  what is not valid        {"n": 1}
"""

import asyncio
import json
import re
import threading
from types import TracebackType
from typing import Any, Self

from aiohttp import web

RESULT = re.compile(r"<tool_response>\n(.*)\n</tool_response>")


class Scripted:
    """The server, for as long as the `with` block runs."""

    def __init__(self) -> None:
        self.port = 0
        self.prompts: list[list[dict[str, str]]] = []
        """What the model was asked, self-tests included."""
        self.calls: list[tuple[str, Any]] = []
        """Of tools: the name, and what came."""
        self.given_up: list[str] = []
        """Tools whose caller went away before they had answered."""
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="scripted", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/tools/{name}", self._tool)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self._up.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"data": [{"id": "scripted"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.prompts.append(asked["messages"])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        said = answer(asked["messages"][-1]["content"])
        for start in range(0, len(said), 7):
            await _event(response, {"delta": {"content": said[start : start + 7]}})
        await _event(response, {"delta": {}, "finish_reason": "stop"})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _tool(self, request: web.Request) -> web.StreamResponse:
        name, said = request.match_info["name"], await request.json()
        self.calls.append((name, said))
        match name:
            case "slow":
                try:
                    await asyncio.sleep(20)
                except asyncio.CancelledError:
                    self.given_up.append(name)
                    raise
            case "moved":
                raise web.HTTPFound("/tools/echo")
            case "flood":
                return web.Response(text="x" * 70_000)
            case "broken":
                return web.Response(status=500)
        return web.Response(text=json.dumps(said))


def answer(turn: str) -> str:
    """What the model says to a turn."""
    if results := RESULT.findall(turn):
        found = [json.loads(result) for result in results]
        return "So: " + "; ".join(result.get("content") or result["error"] for result in found)
    if turn.startswith("This answer is not valid"):
        return '{"n": 1}'
    verb, _, rest = turn.partition(" ")
    if verb == "call":
        pairs = (each.split(" ", 1) for each in rest.split(" and "))
        said = [{"name": name, "arguments": json.loads(arguments)} for name, arguments in pairs]
        return "Let me see. " + "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in said)
    return rest if verb == "say" else "yes"


async def _event(response: web.StreamResponse, choice: dict[str, object]) -> None:
    await response.write(f"data: {json.dumps({'choices': [{'index': 0, **choice}]})}\n\n".encode())
