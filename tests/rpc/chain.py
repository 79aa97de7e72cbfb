"""The mesh's stages over real gRPC servers on free ports, in one process: what the tests of lanes drive."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from msgspec.structs import replace

from libs.catalogue import ModelSpec, Simulation
from libs.clock import SystemClock
from libs.lane.client import RemoteStage
from libs.lane.forwarder import Forwarder
from libs.lane.frame import Frame
from libs.lane.server import lane_streams, stage_service
from libs.lane.stage import Stage
from libs.lane.work import Note, Outcome, Sampling, Tier, Work
from libs.rpc.channels import Channels
from libs.rpc.interceptors import errors
from libs.rpc.server import RpcServer
from libs.streams.client import Dialer
from libs.tasks import Tasks
from libs.telemetry.metrics import Metrics
from libs.telemetry.tracing import Tracing, untraced
from services.batcher.executors import ExecutorInfo
from services.batcher.memory import Ask
from services.batcher.observe import Observer as BatcherObserver
from services.batcher.queue import Limits
from services.batcher.rules import FixedRules, TierRules
from services.batcher.seat import ModelCapacity
from services.batcher.stage import Batcher
from services.executor.host import Host
from services.executor.simulated.engine import SimulatedEngine
from services.router.observe import Observer as RouterObserver
from services.router.route import Catalogue, PoolState, batcher_for
from services.router.stage import Router

MODEL = "simulated"


def spec(**changes: object) -> ModelSpec:
    """A simulated model with 16 slots and steps of 2 ms."""
    values: dict[str, object] = {
        "name": MODEL, "source": "simulated:", "context_tokens": 4096, "blocks": 1024, "block_tokens": 16,
        "slots": 16, "step_tokens": 512, "simulation": Simulation(step_base_us=2000.0, seed=7),
    }  # fmt: skip
    return ModelSpec(**{**values, **changes})  # type: ignore[arg-type]


def work(index: int = 0, *, tokens: int = 20, prompt: int = 40, timeout_s: float = 30.0, **changes: object) -> Work:
    """A work whose answer is a function of `index` alone."""
    values: dict[str, object] = {
        "request_id": f"request-{index}", "tenant": "t", "tier": Tier.INTERACTIVE, "model": MODEL, "pool": f"{MODEL}@0",
        "prompt": [1000 + (index * 31 + i) % 5000 for i in range(prompt)],
        "sampling": Sampling(max_tokens=tokens, ignore_end=True), "deadline": SystemClock().now() + timeout_s,
    }  # fmt: skip
    return Work(**{**values, **changes})  # type: ignore[arg-type]


class NoMemory:
    """A batcher's Memory when no KV-cache manager is there."""

    def ask(self, ask: Ask, done) -> None:  # type: ignore[no-untyped-def]
        done(None)

    def release(self, reservation: int, found_blocks: int | None = None) -> None:
        pass


class Answers:
    """A Sink that puts answers together and notices every gap and repeat."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.notes: dict[int, list[Note]] = {}
        self.frames: list[tuple[int, ...]] = []
        """Work ids of each frame."""
        self._changed = asyncio.Event()

    def on_ready(self) -> None:
        self._changed.set()

    def on_frame(self, frame: Frame) -> None:
        self.frames.append(tuple(frame.work_ids.tolist()))
        for work_id, offset, tokens, _ in frame.entries():
            answer = self.tokens.setdefault(work_id, [])
            assert offset == len(answer), f"work {work_id}: offset {offset} behind {len(answer)} tokens"
            answer += tokens
        self._changed.set()

    def on_note(self, work_id: int, note: Note) -> None:
        self.notes.setdefault(work_id, []).append(note)
        self._changed.set()

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        assert work_id not in self.outcomes, f"work {work_id} ended twice"
        self.outcomes[work_id] = outcome
        self._changed.set()

    def on_broken(self, reason: str) -> None:
        raise AssertionError(reason)

    async def until(self, condition, timeout_s: float = 20.0) -> None:  # type: ignore[no-untyped-def]
        """Waits for a condition on this sink."""
        async with asyncio.timeout(timeout_s):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()


@dataclass(slots=True)
class Served:
    """A stage behind a port, which can be cut off and served again at the same port."""

    stage: Stage
    rpc: RpcServer

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.rpc.port}"

    async def cut(self) -> None:
        """Ends the server and every stream on it at once."""
        await self.rpc.stop()

    async def mend(self) -> None:
        """Serves again."""
        self.rpc = await _serve(self.stage, self.endpoint)


@dataclass(slots=True)
class Chain:
    """Router → batchers → executors."""

    tasks: Tasks
    channels: Channels
    tracing: Tracing
    executors: dict[str, Served] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    batchers: dict[str, Served] = field(default_factory=dict)
    forwarder: Forwarder = field(init=False)
    router: Router = field(init=False)
    known: Catalogue = field(default_factory=Catalogue)
    """What the router knows; a test may replace it."""
    deciding: dict[str, Batcher] = field(default_factory=dict)
    """The batchers behind their ports."""

    def remote(self, served: Served) -> RemoteStage:
        return RemoteStage(served.endpoint, self.channels.connect, Dialer(), self.tasks)


async def _serve(stage: Stage, listen: str) -> RpcServer:
    rpc = RpcServer(listen, [stage_service(stage)], [errors], None, lane_streams(stage))
    await rpc.start()
    return rpc


async def served(stage: Stage) -> Served:
    """Serves a stage on free ports."""
    return Served(stage, await _serve(stage, "127.0.0.1:0"))


@asynccontextmanager
async def chain(
    *,
    executors: int = 1,
    batchers: int = 1,
    model: ModelSpec | None = None,
    tracing: Tracing | None = None,
    limits: Limits | None = None,
    versions: Sequence[ModelSpec] = (),
) -> AsyncIterator[Chain]:
    """Runs a chain whose pieces all are ready.

    Args:
        versions: Further versions of the model; every executor holds all of them.
    """
    model = model or spec()
    models = [model, *versions]
    tasks, channels, clock = Tasks(), Channels(), SystemClock()
    made = Chain(tasks, channels, tracing or untraced())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(tasks.close)
        stack.push_async_callback(channels.close)
        for index in range(executors):
            name = f"executor-{index}"
            engine = SimulatedEngine(clock)
            stack.push_async_callback(engine.close)
            host = Host(name, made.tracing, lambda *_: None, lambda *_: None)
            for one in models:
                hosted = host.host(one.pool)
                hosted.runner = await engine.load(one, hosted)
            made.hosts[name] = host
            made.executors[name] = await served(host)
            stack.push_async_callback(made.executors[name].cut)
        capacity = {one.pool: ModelCapacity(one.slots, one.blocks, one.block_tokens) for one in models}
        rules = FixedRules(tiers={tier: TierRules(limits or Limits(), 60.0) for tier in Tier})
        ticking: list[Batcher] = []
        for index in range(batchers):
            name = f"batcher-{index}"
            batcher = Batcher(
                name, NoMemory(), rules, made.tracing,
                BatcherObserver(Metrics("batcher", name, "0")), clock, random.Random(index).randrange,
            )  # fmt: skip
            batcher.set_executors({n: ExecutorInfo(made.remote(e), capacity) for n, e in made.executors.items()})
            made.deciding[name] = batcher
            ticking.append(batcher)
            made.batchers[name] = await served(batcher)
            stack.push_async_callback(made.batchers[name].cut)
        made.forwarder = Forwarder("router", batcher_for, clock)
        made.forwarder.set_neighbours({n: made.remote(b) for n, b in made.batchers.items()})
        made.known = Catalogue({model.name: model}, pools={model.pool: PoolState(1, 0, clock.monotonic())})
        observer = RouterObserver(Metrics("router", "router-0", "0"))
        made.router = Router(made.forwarder, lambda: made.known, made.tracing, observer, clock)

        async def tick() -> None:
            while True:
                for batcher in ticking:
                    batcher.tick()
                made.forwarder.expire()
                await asyncio.sleep(0.02)

        tasks.spawn(tick(), "tick")
        yield made


async def reference(works: Sequence[Work], model: ModelSpec | None = None) -> list[list[int]]:
    """The answers of an undisturbed engine, without any gRPC."""
    engine = SimulatedEngine(SystemClock())
    host = Host("reference", untraced(), lambda *_: None, lambda *_: None)
    model = model or spec()
    hosted = host.host(model.pool)
    hosted.runner = await engine.load(model, hosted)
    sink = Answers()
    lane = host.open(sink)
    for index, one in enumerate(works):
        lane.submit(index, replace(one, pool=model.pool))
    await sink.until(lambda s: len(s.outcomes) == len(works))
    await engine.close()
    return [sink.tokens[index] for index in range(len(works))]
