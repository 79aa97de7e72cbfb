"""What is tried in turn, before the first token, when a model cannot answer? Pure.

    [the choice] ─▶ [the route's model, behind a canary or a small model] ─▶ [the route's fallbacks, in order]

A cascade's models stand in front in their order: each that answers in doubt hands over to the next one. What has
begun, and what was asked for by its own name, has one candidate alone.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from libs.errors import (
    DeadlinePassed,
    HeadraceError,
    InternalError,
    ModelUnknown,
    NoExecutor,
    NotSupported,
    Overloaded,
    StageUnavailable,
    SwitchedOff,
)
from libs.lane.work import Asked, Outcome, Work
from services.router.policy import Cascade, RouteRules
from services.router.rules import Choice


class Try(msgspec.Struct, frozen=True):
    """A model that may answer."""

    model: str
    why: str
    """The rule, for people and metrics: "rule long", "canary", "fallback"."""
    judged: Cascade | None = None
    """By what its answer is judged: it is of a cascade, and others follow in it."""


class Wait(msgspec.Struct, frozen=True):
    """Wait so long for one of those in front to come back."""

    seconds: float


class Reject(msgspec.Struct, frozen=True):
    """Nothing behind this is tried."""


Step = Try | Wait | Reject

_ELSEWHERE = (NoExecutor, StageUnavailable, InternalError, Overloaded, NotSupported, SwitchedOff, ModelUnknown)
"""Errors that say something of a model, not of the request."""


def chain(choice: Choice, route: RouteRules, asked: Asked) -> Sequence[Step]:
    """The steps of a request of a route, each model once, and none that was tried before it was rerouted."""
    return tuple(_once(_all(choice, route), {*asked.tried} - {choice.model}))


def alone(model: str, why: str) -> Sequence[Step]:
    """The steps of a work that goes to one model or nowhere."""
    return (Try(model, why),)


def may_go_elsewhere(error: HeadraceError, work: Work, now: float) -> bool:
    """Whether another model may do better; `now` in Unix seconds. Of a work without a token, not cancelled.

    A deadline that cannot be met in one queue may be met in another one, while it is not past.
    """
    return isinstance(error, _ELSEWHERE) or (isinstance(error, DeadlinePassed) and now < work.deadline)


def has_begun(work: Work, outcome: Outcome) -> bool:
    """Whether tokens have passed, now or before it came here: then no other model can go on with it."""
    return bool(work.resumed) or outcome.output_tokens > 0


def _all(choice: Choice, route: RouteRules) -> Iterator[Step]:
    if choice.cascade is not None:
        models = choice.cascade.models
        models = models[models.index(choice.model) :]
        for model in models:
            yield Try(model, "cascade", choice.cascade if model != models[-1] else None)
    else:
        yield Try(choice.model, choice.rule)
    if choice.kind in ("canary", "small"):
        yield Try(route.model, "model")
    for fallback in route.fallbacks:
        if fallback.reject:
            yield Reject()
        elif fallback.wait_s:
            yield Wait(fallback.wait_s)
        elif fallback.model:
            yield Try(fallback.model, "fallback")


def _once(steps: Iterable[Step], seen: set[str]) -> Iterator[Step]:
    for step in steps:
        if isinstance(step, Try):
            if step.model in seen:
                continue
            seen.add(step.model)
        yield step
        if isinstance(step, Reject):
            return
