"""The simulated engine on an event loop: lets the model's steps take their time."""

import asyncio

import structlog

from libs.catalogue import ModelSpec
from libs.clock import Clock, SystemClock
from libs.lane.work import FinishReason, Sampling, Tier, Work
from services.executor.engine import Capabilities, Capacity, Exactness, Listener, LoadFailed, SelfCheckFailed
from services.executor.simulated import answers
from services.executor.simulated.model import SimulatedModel

log = structlog.get_logger()

_CATCH_UP_S = 0.1
"""A runner that is late (the loop was busy) hurries after its schedule up to this far; beyond, the time is
lost, as it would be for an engine whose host was frozen."""

_QUESTION = 8
"""Tokens of the self-test's answer."""


CAPABILITIES = Capabilities(
    Exactness.EXACT,
    log_probs=True,
    adapters="batch",
    salted_cache=True,
    cached_tokens=True,
    seeds=True,
    ignore_end=True,
)


class SimulatedEngine:
    """Loads models in `simulation.load_us`; see services.executor.engine.Engine.

    Args:
        clock: For deadlines. Steps are timed by the event loop.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._runners: list[SimulatedRunner] = []

    async def start(self) -> None:
        """Needs nothing."""

    async def load(self, model: ModelSpec, listener: Listener) -> "SimulatedRunner":
        """Makes the model, once a scratch copy of it has answered a question right."""
        try:
            simulated = SimulatedModel(model)
        except ValueError as error:
            raise LoadFailed(str(error)) from error
        await asyncio.sleep(model.simulation.load_us / 1e6)
        _ask(SimulatedModel(model), model.simulation.seed)
        runner = SimulatedRunner(simulated, listener, self._clock, model)
        self._runners = [*(other for other in self._runners if not other.closed), runner]
        return runner

    async def close(self) -> None:
        """Closes every runner."""
        runners, self._runners = self._runners, []
        for runner in runners:
            await runner.close()


class SimulatedRunner:
    """A SimulatedModel that runs by itself; see services.executor.engine.Runner.

    Each step is told when its time is up. Steps follow each other on a schedule, so that delays of the event
    loop do not add up. Steps that take no time give way to the loop after every one.
    """

    def __init__(self, model: SimulatedModel, listener: Listener, clock: Clock, spec: ModelSpec) -> None:
        self.closed = False
        self._spec = spec
        self._model = model
        self._listener = listener
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.Handle | None = None
        self._due = 0.0

    @property
    def capacity(self) -> Capacity:
        return self._model.capacity

    def submit(self, work_id: int, work: Work) -> None:
        if self.closed:
            raise RuntimeError("the runner is closed")
        self._model.submit(work_id, work)
        self._start()

    def cancel(self, work_id: int) -> None:
        if not self.closed:
            self._model.cancel(work_id)
            if not self._model.idle:
                self._start()

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    async def load_adapter(self, adapter: ModelSpec) -> None:
        """Adapters are part of what an answer is computed from: there is nothing to load."""

    async def unload_adapter(self, adapter: str) -> None:
        """There is nothing to unload."""

    async def self_check(self) -> None:
        if self.closed:
            raise SelfCheckFailed("it is closed")
        try:
            _ask(SimulatedModel(self._spec), self._spec.simulation.seed)
        except LoadFailed as failed:
            raise SelfCheckFailed(str(failed)) from failed

    async def close(self) -> None:
        self.closed = True
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _start(self) -> None:
        if self._handle is None:
            self._due = self._loop.time()
            self._handle = self._loop.call_soon(self._run)

    def _run(self) -> None:
        """Begins a step, and ends it at once if it takes no time."""
        try:
            step, duration_s = self._model.step(self._clock.now())
        except Exception as error:  # a bug; the executor must see the runner die, not stall
            log.exception("the simulated model failed")
            self.closed, self._handle = True, None
            self._listener.on_broken(f"{type(error).__name__} in the simulated model")
            return

        def end() -> None:
            self._listener.on_step(step)
            if self.closed or self._model.idle:
                self._handle = None
            else:
                self._handle = self._loop.call_soon(self._run)

        if duration_s > 0:
            self._due = max(self._due, self._loop.time() - _CATCH_UP_S) + duration_s
            self._handle = self._loop.call_at(self._due, end)
        else:
            end()


def _ask(model: SimulatedModel, seed: int) -> None:
    """Raises LoadFailed unless the model answers as it should."""
    prompt = [1]
    sampling = Sampling(max_tokens=_QUESTION, ignore_end=True)
    model.submit(0, Work("self-test", "", Tier.INTERACTIVE, "", prompt, sampling, deadline=float("inf")))
    tokens: list[int] = []
    for _ in range(_QUESTION + 1):
        step, _duration = model.step(0.0)
        tokens += step.frame.token_ids
        if step.outcomes:
            finish = step.outcomes[0][1].finish
            expected = answers.tokens(answers.digest(seed, None, prompt), 0)
            if finish is FinishReason.LENGTH and tokens == [next(expected) for _ in tokens]:
                return
            break
    raise LoadFailed(f"the self-test's answer is wrong: {tokens}")
