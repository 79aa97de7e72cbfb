"""What is asked during a soak: kinds of requests, how often each comes, and how each may end. Pure."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from headrace.inference.v1 import inference_pb2 as pb

MODEL, ADAPTER = "soak", "soak-poet"
PLAIN, BROKEN = "plain-talk", "no-such-answer"
"""Contracts: one that every answer keeps, one that none does, for the simulated engine writes no JSON."""
ORDINARY = ("red", "green", "blue")
NARROW, GHOST, OPERATOR, STRANGER = "narrow", "ghost", "dev", "stranger"
CONTEXT = 4096
OK, LEFT = "OK", "LEFT"
"""Results beside the reasons of errors: it ended well; its client went away."""
DOCUMENTED = frozenset(
    {OK, LEFT, *(reason.removeprefix("ERROR_REASON_") for reason in pb.ErrorReason.keys())}  # noqa: SIM118
    - {"UNSPECIFIED", "INTERNAL"}
)
"""docs/operations.md has each; INTERNAL is a bug."""

WORDS = ("river", "mill", "wheel", "gate", "water", "channel", "stone", "grain", "flour", "weir", "sluice", "pond")
PREFIXES = 12
"""Long beginnings that chats share: more than fit into a cache at once, few enough to come again."""
PREFIX_WORDS = 700
JSON_SCHEMA = '{"type": "object", "properties": {"depth": {"type": "number"}}, "required": ["depth"]}'
NEVER_KNOWN = "no-such-model"

Manner = Literal["reads", "slow", "stops", "cancels", "vanishes"]
"""Of a client: reads as it comes; pauses after each message; stops reading for seconds; cancels; its stream breaks."""
Chance = random.Random
Make = Callable[[Chance], pb.GenerateRequest]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request."""

    name: str
    share: float
    """How often it comes, against the others."""
    make: Make
    allowed: frozenset[str] = frozenset({OK})
    """How it may end."""
    tenants: tuple[str, ...] = ORDINARY
    manner: Manner = "reads"
    timed: bool = False
    """All of this kind are equally long: their whole latency is watched."""


def _text(chance: Chance, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def _prompt(chance: Chance, tokens: int, *, words: int = 20, **fields: object) -> pb.GenerateRequest:
    request = pb.GenerateRequest(model=MODEL, prompt=f"{chance.getrandbits(48):x} {_text(chance, words)}", **fields)  # type: ignore[arg-type]
    request.sampling.max_tokens, request.sampling.ignore_end = tokens, True
    return request


def _chat(chance: Chance, tokens: int, **fields: object) -> pb.GenerateRequest:
    number = min(int(chance.expovariate(0.3)), PREFIXES - 1)
    prefix = _text(random.Random(number), PREFIX_WORDS)
    turns = [(pb.ROLE_SYSTEM, prefix), (pb.ROLE_USER, f"{chance.getrandbits(48):x}: {_text(chance, 15)}?")]
    chat = pb.Chat(messages=[pb.Message(role=role, content=content) for role, content in turns])
    request = pb.GenerateRequest(model=MODEL, chat=chat, **fields)  # type: ignore[arg-type]
    request.sampling.max_tokens, request.sampling.ignore_end = tokens, True
    return request


def _any_form(chance: Chance) -> pb.OutputForm.ValueType:
    return chance.choice((pb.OUTPUT_FORM_TEXT, pb.OUTPUT_FORM_TOKEN_IDS, pb.OUTPUT_FORM_TEXT_AND_TOKEN_IDS))


def _ordinary(chance: Chance) -> pb.GenerateRequest:
    return _prompt(chance, chance.choice((4, 16, 64)), output_form=_any_form(chance))


def _stopped(chance: Chance) -> pb.GenerateRequest:
    request = _prompt(chance, 64, output_form=pb.OUTPUT_FORM_TEXT_AND_TOKEN_IDS)
    request.sampling.stop.extend(("th", "never said"))
    return request


def _sampled(chance: Chance) -> pb.GenerateRequest:
    request = _prompt(chance, 32, log_probs=True, output_form=pb.OUTPUT_FORM_TOKEN_IDS)
    request.sampling.temperature, request.sampling.top_p, request.sampling.seed = 0.8, 0.9, chance.getrandbits(31)
    return request


def _wrong(chance: Chance) -> pb.GenerateRequest:
    request = _prompt(chance, 8)
    request.sampling.temperature = 5.0
    return request


def _hasty(chance: Chance) -> pb.GenerateRequest:
    request = _prompt(chance, 400)
    request.timeout.FromMilliseconds(chance.choice((1, 20, 300)))
    return request


def _elsewhere(chance: Chance, model: str, **fields: object) -> pb.GenerateRequest:
    request = _prompt(chance, 24, **fields)  # type: ignore[arg-type]
    request.model = model
    return request


def _constrained(chance: Chance) -> pb.GenerateRequest:
    return _prompt(chance, 16, grammar=pb.Grammar(json_schema=JSON_SCHEMA))


_SOMETIMES = frozenset({OK, LEFT, "CANCELLED"})
KINDS = (
    Kind("short", 20, lambda chance: _prompt(chance, 32, output_form=pb.OUTPUT_FORM_TEXT), timed=True),
    Kind("ordinary", 20, _ordinary),
    Kind("chat", 25, lambda chance: _chat(chance, chance.choice((8, 32, 96)), output_form=_any_form(chance))),
    Kind("long", 2, lambda chance: _prompt(chance, 400, words=60)),
    Kind("log-probs", 4, _sampled),
    Kind("stop", 4, _stopped),
    Kind("async", 5, lambda chance: _prompt(chance, 64, words=200, tier=pb.TIER_ASYNC)),
    Kind("adapter", 3, lambda chance: _elsewhere(chance, ADAPTER)),
    Kind("contract", 2, lambda chance: _chat(chance, 16, contract=PLAIN)),
    Kind("broken contract", 1, lambda chance: _chat(chance, 8, contract=BROKEN), frozenset({"CONTRACT_BROKEN"})),
    Kind("grammar", 1, _constrained, frozenset({"NOT_SUPPORTED"})),
    Kind("slow", 2, lambda chance: _prompt(chance, 60), manner="slow"),
    Kind("stops reading", 1, lambda chance: _prompt(chance, 200), manner="stops"),
    Kind("cancels", 3, lambda chance: _prompt(chance, 300), _SOMETIMES, manner="cancels"),
    Kind("vanishes", 1, lambda chance: _prompt(chance, 300), _SOMETIMES, manner="vanishes"),
    Kind("limited", 4, lambda chance: _prompt(chance, 48), frozenset({OK, "QUOTA_EXCEEDED"}), tenants=(NARROW,)),
    Kind("hasty", 1, _hasty, frozenset({OK, "DEADLINE_PASSED"})),
    Kind("wrong", 1, _wrong, frozenset({"REQUEST_INVALID"})),
    Kind("too long", 0.5, lambda chance: _prompt(chance, 8, words=CONTEXT + 500), frozenset({"REQUEST_INVALID"})),
    Kind("unknown", 0.5, lambda chance: _elsewhere(chance, NEVER_KNOWN), frozenset({"MODEL_UNKNOWN"})),
    Kind("stranger", 0.5, _ordinary, frozenset({"CREDENTIALS_INVALID"}), tenants=(STRANGER,)),
)  # fmt: skip
ALLOWED: Mapping[str, frozenset[str]] = {
    **{kind.name: kind.allowed for kind in KINDS}, "operator": frozenset({OK}), "session": frozenset({OK}),
}  # fmt: skip
"""Also of an operator's calls, and of Sessions themselves."""


def draw(chance: Chance) -> Kind:
    """The next one."""
    [kind] = chance.choices(KINDS, [kind.share for kind in KINDS])
    return kind


def draw_answerable(chance: Chance) -> pb.GenerateRequest:
    """A request that can be answered: what Explain is asked about."""
    return chance.choice((_ordinary, _stopped, _sampled))(chance)
