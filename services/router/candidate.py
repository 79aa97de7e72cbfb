"""May this model answer this work, now? Pure.

In this order: it is known and not switched off, it can what the work needs, a version of it can be reached
(`route`), the breaker of that version's pool is closed, and the prompt is made of its tokens.
"""

import msgspec
from msgspec.structs import replace

from libs.catalogue import ModelSpec
from libs.errors import ModelUnknown, NotSupported, Rerouted, StageUnavailable
from libs.lane.work import Asked, Work
from libs.tokens.blocks import chain, salt
from services.router.breaker import Breaker, Breakers
from services.router.route import Catalogue, Route, route
from services.router.rules import needs

BREAKER = "breaker"
"""Set in the metadata of the StageUnavailable of a work that a breaker does not let through: the pool."""


class Candidate(msgspec.Struct):
    """A model that may answer."""

    work: Work
    """As it came."""
    route: Route
    breaker: Breaker
    known: Catalogue
    spec: ModelSpec | None
    of: ModelSpec | None
    """The model whose tokens the prompt is made of, of a route."""

    def at_once(self) -> bool:
        """Whether a copy is ready, so that it would not wait for one."""
        state = self.known.pools.get(self.route.pool)
        return state is not None and state.ready > 0 and not self.route.waiting

    def going(self, **changes: object) -> Work:
        """The work as it goes to the model, and what else is to be changed of it."""
        work, spec, of, route = self.work, self.spec, self.of, self.route
        hashes, block_tokens, sampling = work.block_hashes, work.block_tokens, work.sampling
        # A prefix that was named for another model or adapter is no prefix of this one.
        same = route.salt == work.salt
        if spec is not None and of is not None and spec.name != of.name:
            base = spec.base or spec.name
            if not same or base != (of.base or of.name) or spec.block_tokens != of.block_tokens:
                same, block_tokens = True, spec.block_tokens
                hashes = chain(work.prompt, block_tokens, salt(base, route.salt)) if block_tokens else ()
            room = spec.context_tokens - len(work.prompt)
            if sampling.max_tokens > room and _open_ended(work, of, self.known):
                sampling = replace(sampling, max_tokens=room)
        own: dict[str, object] = {
            "model": route.model, "pool": route.pool, "adapter": route.adapter, "salt": route.salt, "asked": None,
            "block_hashes": hashes if same else (), "block_tokens": block_tokens, "sampling": sampling,
        }  # fmt: skip
        return replace(work, **{**own, **changes})


def consider(
    work: Work, asked: Asked | None, model: str, known: Catalogue, breakers: Breakers, now: float
) -> Candidate:
    """A model for a work.

    Args:
        asked: None for a work that goes to one model or nowhere.
        model: Of the catalogue; for a work without `asked`, whatever it names.
        now: Monotonic seconds.

    Raises ModelUnknown, SwitchedOff, NotSupported, NoExecutor, StageUnavailable with BREAKER, or Rerouted when the
    prompt is made of another model's tokens.
    """
    spec = known.models.get(model)
    if asked is not None:
        if spec is None:
            raise ModelUnknown(f"{asked.alias} leads to {model!r}, which is no model", metadata={"model": asked.alias})
        if lack := lacking(spec, work, asked, known):
            raise NotSupported(f"{model} {lack}", metadata={"model": model})
    chosen = route(work if asked is None else replace(work, model=model), known, now)
    breaker = breakers.of(chosen.pool, known.breaker(chosen.pool))
    begun = bool(work.resumed and work.pool)
    if not begun and (wait := breaker.refused_s(now)) is not None:
        said = f"{chosen.pool} fails: its breaker lets nothing through for {wait:.1f} s"
        raise StageUnavailable(said, metadata={BREAKER: chosen.pool}, retry_after_s=max(wait, 0.1))
    of = known.models.get(asked.tokens_of) if asked is not None else None
    if asked is not None and spec is not None and _other_tokens(spec, of, work, asked):
        raise Rerouted(f"{model} has other tokens than {asked.tokens_of}", metadata={"model": model})
    return Candidate(work, chosen, breaker, known, spec, of)


def lacking(spec: ModelSpec, work: Work, asked: Asked, known: Catalogue) -> str:
    """What a model lacks for a work, as the end of a sentence; "" when it can do all of it."""
    if missing := needs(work, asked) - {*spec.capabilities}:
        return f"has no capability {', '.join(repr(each) for each in sorted(missing))}"
    of = known.models.get(asked.tokens_of)
    if of is None or of.tokenizer_source != spec.tokenizer_source:
        return ""  # how long the prompt is for this one is known only in its own tokens
    needed = len(work.prompt) + (1 if _open_ended(work, of, known) else work.sampling.max_tokens)
    if needed > spec.context_tokens:
        return f"has a context of {spec.context_tokens} tokens, and {needed} are needed"
    return ""


def _open_ended(work: Work, of: ModelSpec, known: Catalogue) -> bool:
    """Whether the caller left the answer's length open: admission gave it all that the prompt left, in the context of
    its tokens' model, or in the longest one where that is too short."""
    total = len(work.prompt) + work.sampling.max_tokens
    too_short = len(work.prompt) >= of.context_tokens
    return total == of.context_tokens or (
        too_short and any(total == spec.context_tokens for spec in known.models.values())
    )


def _other_tokens(spec: ModelSpec, of: ModelSpec | None, work: Work, asked: Asked) -> bool:
    if of is None or spec.name == asked.tokens_of:
        return spec.name != asked.tokens_of
    # An endpoint that takes chats needs the chat itself, which admission adds only for such a one.
    needs_chat = spec.remote.api == "chat" and of.remote.api != "chat" and not work.chat
    return spec.tokenizer_source != of.tokenizer_source or needs_chat
