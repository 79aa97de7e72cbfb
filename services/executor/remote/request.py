"""A work as the body of a request. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from libs.errors import NotSupported, RequestInvalid, Violation
from libs.lane.work import Sampling, Tier, Work
from services.executor.engine import Capabilities, Exactness
from services.executor.sampling import seed_of

Api = Literal["chat", "completions", "completions_tokens"]
PATHS = {"chat": "/chat/completions", "completions": "/completions", "completions_tokens": "/completions"}
SEEDS = 2**31
"""Seeds are below it: some endpoints take no more bits."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the endpoint understands, as found out when the model was loaded."""

    max_tokens: str = "max_tokens"
    """The field's name; newer chat models want max_completion_tokens."""
    usage: bool = True
    """It takes stream_options, and so tells the usage of a stream."""
    asks_token_ids: bool = True
    """It bears being asked for token ids."""
    token_ids: bool = False
    """It tells the answer's token ids (return_token_ids)."""


def capabilities(api: Api, dialect: Dialect, replay: bool, paid: bool) -> Capabilities:
    """What works can ask for. Of the completions API only servers of open models know more than OpenAI's fields,
    and those take token ids."""
    open_model = api == "completions_tokens"
    return Capabilities(
        exactness=Exactness.MODELLED,
        grammars=frozenset({"json_schema"}) if api == "chat" else frozenset(),
        log_probs=True,
        seeds=True,
        penalties=True,
        ignore_end=open_model,
        top_k=open_model,
        resume="replay" if replay else "prompt",
        paid=paid,
        token_ids=open_model and dialect.token_ids,
    )


def longest(work: Work, context_tokens: int) -> int:
    """Tokens of the whole answer: what was asked for, or what the context has room for."""
    most = work.sampling.max_tokens
    return min(most, context_tokens - len(work.prompt)) if context_tokens else most


def body(
    model: str,
    api: Api,
    dialect: Dialect,
    work: Work,
    max_tokens: int,
    written: str,
    write: Callable[[Sequence[int]], str],
) -> dict[str, Any]:
    """The request for a work.

    Args:
        max_tokens: Of the whole answer, see `longest`.
        written: The answer so far, to be continued; "" when it is made from its start.
        write: Prompt tokens to text.

    Raises RequestInvalid and NotSupported.
    """
    sampling = work.sampling
    request: dict[str, Any] = {"model": model, "stream": True, **_sampling(sampling, api)}
    request[dialect.max_tokens] = max_tokens - (len(work.resumed) if written else 0)
    if dialect.usage:
        request["stream_options"] = {"include_usage": True}
    if sampling.temperature != 0 or sampling.seed is not None:
        request["seed"] = seed_of(work, len(work.resumed) if written else 0) % SEEDS
    if api == "chat":
        turns = work.chat or (("user", write(work.prompt)),)
        request["messages"] = [{"role": role, "content": content} for role, content in turns]
        if written:
            request["messages"].append({"role": "assistant", "content": written})
            request |= {"continue_final_message": True, "add_generation_prompt": False}
        if work.log_probs:
            request["logprobs"] = True
        if work.grammar is not None:
            request["response_format"] = _schema(work.grammar.text)
        return request
    if work.log_probs:
        request["logprobs"] = 1
    if api == "completions":
        request["prompt"] = write(work.prompt) + written
        return request
    request["prompt"] = [*work.prompt, *(work.resumed if written else ())]
    if dialect.asks_token_ids:
        request["return_token_ids"] = True
    return request


def question(model: str, api: Api, dialect: Dialect, text: str, tokens: list[int]) -> dict[str, Any]:
    """The request for a self-test of one token."""
    work = Work("self-test", "", Tier.INTERACTIVE, "", tokens, Sampling(1, temperature=0.0), 0.0)
    return body(model, api, dialect, work, 1, "", lambda _: text)


def _sampling(sampling: Sampling, api: Api) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
    }
    repetition = sampling.repetition_penalty
    if api == "completions_tokens":
        fields |= {
            "top_k": sampling.top_k or None,
            "repetition_penalty": repetition,
            "ignore_eos": sampling.ignore_end or None,
        }
    elif repetition not in (None, 0.0, 1.0):
        raise NotSupported("OpenAI's API has no repetition penalty: use presence_penalty or frequency_penalty")
    return {name: value for name, value in fields.items() if value is not None}


def _schema(text: str) -> dict[str, Any]:
    try:
        schema = msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise RequestInvalid.of([Violation("grammar", "the JSON schema is not JSON")]) from None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
