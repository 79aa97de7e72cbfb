"""A router in front of a stage that a test plays by hand, where every model answers in tokens of its own."""

from collections.abc import Sequence
from dataclasses import replace

from libs.catalogue import ModelSpec, model_of
from libs.clock import ManualClock
from libs.lane.draft import Draft
from libs.lane.forwarder import Forwarder
from libs.lane.frame import Frame
from libs.lane.stage import Sink
from libs.lane.work import Asked, FinishReason, Note, Outcome, Work
from libs.telemetry.metrics import Metrics
from libs.telemetry.span import SpanRecord
from libs.telemetry.tracing import Tracing
from services.router.cascade import judge
from services.router.observe import Observer
from services.router.policy import RouteRules
from services.router.route import Catalogue, PoolState, batcher_for
from services.router.stage import Router
from tests.unit.lanes import Answers, HandLane, HandStage, work

NOW = 1000.0
MODELS = "abcdx"
"""All but x have the same tokens."""


def spec(name: str, **changes: object) -> ModelSpec:
    made = ModelSpec(name, f"s:{'x' if name == 'x' else 'abcd'}", 4096, 100, 16, 8, 512, version="1")
    made = replace(made, capabilities=("chat", "log_probs"))
    return replace(made, **changes)  # type: ignore[arg-type]


def catalogue(*routes: RouteRules, ready: str = MODELS, **changes: object) -> Catalogue:
    """All models, of which some have a copy."""
    made = Catalogue(
        models={name: spec(name) for name in MODELS},
        aliases={route.alias: route.model for route in routes},
        routes={route.alias: route for route in routes},
        pools={f"{name}@1": PoolState(1, 0, NOW) for name in ready},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def asked(index: int = 0, alias: str = "r", tokens_of: str = "a", **changes: object) -> Work:
    """A work that asks for a route; `changes` of the work, and of what it asks by."""
    ours = {name: changes.pop(name) for name in list(changes) if name in Asked.__struct_fields__}
    made = Asked(alias, tokens_of, **ours)  # type: ignore[arg-type]
    return work(index, **{"model": alias, "pool": "", "asked": made, **changes})  # type: ignore[arg-type]


def token(model: str, index: int, position: int) -> int:
    """The one right token of a model's answer."""
    return (MODELS.index(model) + 1) * 1_000_000 + index * 1000 + position


def answer(model: str, index: int = 0, tokens: int = 8) -> list[int]:
    """The whole right answer of a model."""
    return [token(model, index, position) for position in range(tokens)]


class ModelLane(HandLane):
    """As its model answers."""

    def submit(self, work_id: int, work: Work) -> None:
        assert self.ready
        assert work_id not in self.works, f"work id {work_id} is in use"
        self.works[work_id] = work
        self.made[work_id] = len(work.resumed)
        self.sent.append(work)

    def cancel(self, work_id: int) -> None:
        self.cancels.append(work_id)
        self.works.pop(work_id, None) if work_id not in self.sink.flights else None  # type: ignore[attr-defined]

    def step(self, *work_ids: int, count: int = 1) -> None:
        frame = Draft()
        for work_id in work_ids or list(self.works):
            one, made = self.works[work_id], self.made[work_id]
            index = int(one.request_id.rpartition("-")[2])
            tokens = answer(one.model, index, one.sampling.max_tokens)[made : made + count]
            if tokens:
                frame.add(work_id, made, tokens, [-0.5] * len(tokens) if one.log_probs else ())
                self.made[work_id] += len(tokens)
        if frame:
            self.sink.on_frame(Frame.of(frame))

    def run(self) -> None:
        """Lets everything end well; an end may cancel others."""
        for work_id in list(self.works):
            if work_id in self.works:
                self.step(work_id, count=self.works[work_id].sampling.max_tokens)
            if work_id in self.works:
                self.end(work_id)

    def of(self, model: str) -> int:
        """The number of the one work that runs on a model."""
        (found,) = [work_id for work_id, one in self.works.items() if one.model == model]
        return found


class ModelStage(HandStage):
    def new_lane(self, sink: Sink) -> HandLane:
        return ModelLane(sink, self.opens_ready)


class Heard(Answers):
    """Also hears of answers that begin anew."""

    def __init__(self) -> None:
        super().__init__()
        self.restarts: dict[int, int] = {}
        self.pools: dict[int, str] = {}

    def on_note(self, work_id: int, note: Note) -> None:
        super().on_note(work_id, note)
        assert work_id not in self.outcomes, f"a note on work {work_id} behind its outcome"
        if note.restart:
            assert self.tokens[work_id], "nothing was there that could be void"
            self.tokens[work_id] = []
            self.log_probs[work_id] = []
            self.restarts[work_id] = self.restarts.get(work_id, 0) + 1
        if note.pool:
            assert note.restart or not self.tokens.get(work_id), "two models in one answer"
            self.pools[work_id] = note.pool

    def whole(self, work_id: int, model: str, tokens: int = 8) -> bool:
        """Whether the work ended well with the whole answer of one model, and was told which."""
        told = model_of(self.pools[work_id]) == model
        right = self.tokens.get(work_id, []) == answer(model, work_id, tokens)
        return told and right and self.outcomes[work_id].error is None


class Texts:
    """A text that names the model; of those in `loading` there is none."""

    def __init__(self) -> None:
        self.loading: set[str] = set()

    def text(self, model: str, tokens: Sequence[int]) -> str | None:
        return None if model in self.loading else f"{model}: {len(tokens)} tokens"


class Routed:
    """A router, one batcher behind it, and what is heard in front."""

    def __init__(self, *routes: RouteRules, known: Catalogue | None = None) -> None:
        self.known = known or catalogue(*routes)
        self.clock, self.spans, self.behind, self.heard = ManualClock(NOW), list[SpanRecord](), ModelStage(), Heard()
        self.forwarder = Forwarder("router", batcher_for, self.clock)
        self.forwarder.set_neighbours({"batcher-0": self.behind})
        self.texts, self.doubts = Texts(), dict[str, str]()
        self.metrics = Metrics("router", "router-0", "0")
        self.router = Router(
            self.forwarder,
            lambda: self.known,
            Tracing("router", "router-0", 1.0, self.spans.append),
            Observer(self.metrics),
            self.clock,
            texts=self.texts,
            judge=self._judge,
        )
        self.lane = self.router.open(self.heard)
        self.router.tick()

    def _judge(
        self, text: str, mean: float | None, schema: str | None, patterns: Sequence[str], least: float
    ) -> str | None:
        """In doubt are the models in `doubts`, and what is improbable."""
        return judge(text, mean, schema, patterns, least) or self.doubts.get(text[0])

    @property
    def batcher(self) -> ModelLane:
        lane = self.behind.lane
        assert isinstance(lane, ModelLane)
        return lane

    @property
    def running(self) -> list[str]:
        """The models that have a work, in the order in which they got it."""
        return [one.model for one in self.batcher.works.values()]

    def submit(self, index: int = 0, **changes: object) -> None:
        """Under its index."""
        self.lane.submit(index, asked(index, **changes))  # type: ignore[arg-type]

    def end(self, model: str, outcome: Outcome | None = None) -> None:
        """Ends the one work on a model; well, with all its tokens, if nothing else is said."""
        number = self.batcher.of(model)
        if outcome is None:
            self.batcher.step(number, count=8)
            outcome = Outcome(FinishReason.LENGTH, output_tokens=8)
        self.batcher.end(number, outcome)

    def pass_time(self, seconds: float) -> None:
        """As the process would: in steps of 50 ms at most."""
        while seconds > 0:
            self.clock.advance(min(seconds, 0.05))
            seconds -= 0.05
            self.forwarder.expire()
            self.router.tick()

    def count(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        return sum(
            sample.value
            for metric in self.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
