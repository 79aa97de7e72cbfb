"""Is a work fit for the engine, and what exactly is the engine to do? Pure.

The engine itself takes over-long prompts and token ids that do not exist without a word, so nothing reaches
it unchecked.
"""

from dataclasses import dataclass
from typing import Any

from libs.catalogue import unsalted
from libs.errors import RequestInvalid
from libs.lane.work import Work
from libs.models.prepared import Facts
from services.executor.fit import faults
from services.executor.openvino.wire import Submit
from services.executor.sampling import GREEDY_BELOW, seed_of


@dataclass(frozen=True, slots=True)
class Limits:
    """What one loaded model can take."""

    context_tokens: int
    """Prompt and answer together: the least of the catalogue's, the model's own, and what the cache holds."""
    block_tokens: int
    facts: Facts


def to_submit(work_id: int, work: Work, limits: Limits) -> Submit:
    """What the child is told. An answer that would outgrow the context ends there, with LENGTH.

    A temperature that is not given is the model's own default, else 1. With a grammar the
    answer is made again from its start, and so with the same seed.

    Raises RequestInvalid with everything that is wrong.
    """
    sampling, facts = work.sampling, limits.facts
    if found := faults(work, limits.context_tokens, facts.vocabulary):
        raise RequestInvalid.of(found)
    temperature = _first(sampling.temperature, facts.temperature, 1.0)
    salt = own_salt(work)
    hashes: list[int] | None = None
    if work.block_tokens:
        usable = work.block_tokens == limits.block_tokens
        hashes = list(work.block_hashes[: len(work.prompt) // limits.block_tokens]) if usable else []
    if salt != work.salt:
        hashes = None  # the mesh's names are those of another prefix
    return Submit(
        work_id=work_id,
        prompt=list(work.prompt),
        resumed=list(work.resumed),
        max_tokens=min(sampling.max_tokens, limits.context_tokens - len(work.prompt)),
        deadline=work.deadline,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=_first(sampling.top_p, facts.top_p, 1.0),
        top_k=_first(sampling.top_k, facts.top_k, 0),
        seed=seed_of(work, 0 if work.grammar else len(work.resumed)),
        repetition_penalty=_first(sampling.repetition_penalty, facts.repetition_penalty, 1.0),
        presence_penalty=_first(sampling.presence_penalty, None, 0.0),
        frequency_penalty=_first(sampling.frequency_penalty, None, 0.0),
        ignore_end=sampling.ignore_end,
        log_probs=work.log_probs,
        grammar_form=work.grammar.form if work.grammar else "",
        grammar_text=work.grammar.text if work.grammar else "",
        hashes=hashes,
        adapter=work.adapter,
        salt=salt,
    )


def own_salt(work: Work) -> str:
    """What keeps a work's prefix apart here: its salt, and always its adapter.

    An adapter that shares the base's prefixes has the base's salt. But OpenVINO 2026.4 computes nonsense when the
    first that such an adapter computes is a few tokens behind a prefix that the base has computed; behind its own it
    does not. So it gets no prefix but its own.
    """
    return work.salt if work.adapter in ("", unsalted(work.salt)[0]) else f"{work.salt} {work.adapter}"


def _first(asked: Any, models: Any, otherwise: Any) -> Any:
    return asked if asked is not None else models if models is not None else otherwise
