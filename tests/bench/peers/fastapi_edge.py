"""The edge that many build first: FastAPI, a pydantic model for each event, a queue for each request.

    python fastapi_edge.py PORT STEP_US        (with FastAPI, uvicorn, uvloop and httptools)

Done as well as it can be without leaving that design: uvloop and httptools, no access log, one encoder for all events,
fields that are not set left out. The engine is a task in the same process, one step for all requests. So there is no
hop behind this edge, and nothing to route: it does less than every other system here.
"""

# mypy: ignore-errors
# It runs in an environment of its own, which the checker does not know.

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel


class Message(BaseModel):
    role: str
    content: str


class ChatRequest(BaseModel):
    model: str
    messages: list[Message]
    stream: bool = False
    max_tokens: int = 16
    temperature: float = 1.0


class Delta(BaseModel):
    role: str | None = None
    content: str | None = None


class Choice(BaseModel):
    index: int = 0
    delta: Delta
    finish_reason: str | None = None


class Chunk(BaseModel):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[Choice]


class Engine:
    """Gives every running request a token in every step."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self._running: list[tuple[asyncio.Queue[int], int, int]] = []
        self._wake = asyncio.Event()

    def submit(self, tokens: int) -> asyncio.Queue[int]:
        queue: asyncio.Queue[int] = asyncio.Queue()
        queue.put_nowait(0)
        if tokens > 1:
            self._running.append((queue, 1, tokens))
            self._wake.set()
        return queue

    async def run(self) -> None:
        next_step = time.perf_counter()
        while True:
            if not self._running:
                self._wake.clear()
                await self._wake.wait()
                next_step = time.perf_counter() + self.step_s
            await asyncio.sleep(max(next_step - time.perf_counter(), 0))
            running, self._running = self._running, []
            for queue, sent, tokens in running:
                queue.put_nowait(sent)
                if sent + 1 < tokens:
                    self._running.append((queue, sent + 1, tokens))
            next_step = max(next_step, time.perf_counter() - 0.1) + self.step_s


engine = Engine(int(sys.argv[2]) / 1e6 if len(sys.argv) > 2 else 0.0)
numbers = itertools.count()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(engine.run())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/control")
async def control(step_us: int) -> dict[str, int]:
    engine.step_s = step_us / 1e6
    return {}


@app.post("/v1/chat/completions")
async def chat(request: ChatRequest) -> StreamingResponse:
    return StreamingResponse(events(request), media_type="text/event-stream")


async def events(request: ChatRequest) -> AsyncIterator[str]:
    name, now = f"chatcmpl-{next(numbers):08x}", int(time.time())

    def event(choice: Choice) -> str:
        chunk = Chunk(id=name, created=now, model=request.model, choices=[choice])
        return f"data: {chunk.model_dump_json(exclude_none=True)}\n\n"

    queue = engine.submit(request.max_tokens)
    yield event(Choice(delta=Delta(role="assistant", content="")))
    for _ in range(request.max_tokens):
        yield event(Choice(delta=Delta(content=f" {await queue.get()}")))
    yield event(Choice(delta=Delta(), finish_reason="length"))
    yield "data: [DONE]\n\n"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", loop="uvloop", http="httptools")
