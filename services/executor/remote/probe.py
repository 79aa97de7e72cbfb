"""Finds out, with questions of one token, whether an endpoint answers and what it understands."""

from dataclasses import replace

from libs.catalogue import ModelSpec
from services.executor.engine import LoadFailed
from services.executor.remote import request
from services.executor.remote.endpoint import Endpoint, EndpointFault

TRIES = 4
"""One for each field that an endpoint may not know, and one more."""

QUESTION = "Say yes."


async def probe(model: ModelSpec, endpoint: Endpoint, api: request.Api, tokens: list[int]) -> request.Dialect:
    """What the endpoint understands of an API.

    Args:
        tokens: A prompt, for the API that takes token ids.

    Raises LoadFailed.
    """
    try:
        listed = await endpoint.models()
    except EndpointFault as fault:
        raise LoadFailed(_reason(model, fault)) from None
    dialect = request.Dialect()
    for _ in range(TRIES):
        try:
            return await _ask(model, endpoint, api, dialect, tokens)
        except EndpointFault as fault:
            less = _without(dialect, str(fault)) if fault.status in (400, 422) else None
            if less is None:
                reason = _reason(model, fault)
                if listed and model.remote.model not in listed:
                    reason += f"; it lists {', '.join(sorted(listed)[:10])}"
                raise LoadFailed(reason) from None
            dialect = less
    raise LoadFailed(f"{model.remote.base_url} refuses every form of request")


async def _ask(
    model: ModelSpec, endpoint: Endpoint, api: request.Api, dialect: request.Dialect, tokens: list[int]
) -> request.Dialect:
    asked = request.question(model.remote.model, api, dialect, QUESTION, tokens)
    token_ids = answered = False
    async with endpoint.stream(request.PATHS[api], asked) as events:
        while not events.ended and (found := await events.next()):
            for chunk in found:
                if chunk.error is not None:
                    raise endpoint.failed(chunk.error)
                answered |= any(choice.finish_reason is not None for choice in chunk.choices)
                token_ids |= any(bool(choice.token_ids) for choice in chunk.choices)
    if not answered:
        raise LoadFailed(f"{model.remote.base_url} did not finish its answer to the self-test")
    return replace(dialect, token_ids=token_ids)


def _without(dialect: request.Dialect, message: str) -> request.Dialect | None:
    """The dialect without what the endpoint complains of; None when that is nothing we could leave out."""
    if "max_completion_tokens" in message and dialect.max_tokens == "max_tokens":
        return replace(dialect, max_tokens="max_completion_tokens")
    if "stream_options" in message and dialect.usage:
        return replace(dialect, usage=False)
    if "return_token_ids" in message and dialect.asks_token_ids:
        return replace(dialect, asks_token_ids=False)
    return None


def _reason(model: ModelSpec, fault: EndpointFault) -> str:
    remote = model.remote
    if fault.fault.fatal:
        key = f"the key in {remote.api_key_file}" if remote.api_key_file else "requests without a key"
        return f"{remote.base_url} does not accept {key} (status {fault.status})"
    return f"{remote.base_url}, model {remote.model}: {fault}"
