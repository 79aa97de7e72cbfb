"""What exactly the engine is to do for a work: the model's defaults filled in. Pure."""

from dataclasses import dataclass
from typing import Any

from libs.lane.work import Grammar, Work
from services.executor.sampling import GREEDY_BELOW, seed_of
from services.executor.vllm.wire import Defaults

SEEDS = 1 << 63
"""torch takes seeds below this."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How tokens are chosen, nothing left open."""

    max_tokens: int
    """To be made now; those resumed are not among them."""
    temperature: float = 0.0
    """0 means greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means all."""
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_end: bool = False
    log_probs: bool = False
    grammar: Grammar | None = None
    resumed: int = 0
    """Tokens at the end of the prompt that belong to the answer."""


def choice(work: Work, context_tokens: int, defaults: Defaults) -> Choice:
    """An answer that would outgrow the context ends there, with LENGTH."""
    sampling, resumed = work.sampling, len(work.resumed)
    temperature = _first(sampling.temperature, defaults.temperature)
    return Choice(
        max_tokens=min(sampling.max_tokens, context_tokens - len(work.prompt)) - resumed,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=_first(sampling.top_p, defaults.top_p),
        top_k=_first(sampling.top_k, defaults.top_k),
        seed=seed_of(work, resumed) % SEEDS,
        repetition_penalty=_first(sampling.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_first(sampling.presence_penalty, 0.0),
        frequency_penalty=_first(sampling.frequency_penalty, 0.0),
        ignore_end=sampling.ignore_end,
        log_probs=work.log_probs,
        grammar=work.grammar,
        resumed=resumed,
    )


def _first(asked: Any, otherwise: Any) -> Any:
    return otherwise if asked is None else asked
