"""What Triton's error texts mean to whoever asked. Pure.

Triton and the backend send no codes on a stream, only sentences. Those matched here are from
triton-inference-server/core and TensorRT-LLM's executor.
"""

import re

from libs.errors import HeadraceError, InternalError, Overloaded, RequestInvalid, StageUnavailable, Violation

ADAPTER_MISSING = re.compile(r"lora.*not found in cache|lora task.*not found|please send lora weights", re.I)
"""The server has dropped an adapter, or has been started anew: send its weights again."""

_PROMPT = re.compile(
    r"exceeds maximum input length|prompt length|input length.*exceed|exceeds? .*max_(input_len|seq_len|num_tokens)"
    r"|tokens.*exceeds.*(limit|maximum)|should not exceed max_num_tokens",
    re.I,
)
_GRAMMAR = re.compile(r"guided.?decoding|grammar|json.?schema|xgrammar|llguidance|ebnf|regex", re.I)
_SAMPLING = re.compile(
    r"(temperature|top_?[kp]|seed|penalty|max_tokens|output_len|maxnewtokens|sampling).*"
    r"(must|invalid|range|positive|required|requirement)",
    re.I,
)
_FULL = re.compile(r"exceeds maximum queue size|too many requests|no capacity", re.I)
_AWAY = re.compile(
    r"unknown model|is not (ready|available|found)|no (available|loaded) version|unavailable|unload|cancel"
    r"|stub process.*not healthy|shutting down|server exiting|in the process of",
    re.I,
)


def error_of(message: str) -> HeadraceError:
    """The error of a work for what the server said.

    What nothing here knows is InternalError, with no inner text: log `message` beside it.
    """
    said = message.strip().splitlines()[0][:300] if message.strip() else "no reason given"
    for pattern, field in ((_PROMPT, "prompt"), (_GRAMMAR, "grammar"), (_SAMPLING, "sampling")):
        if pattern.search(message):
            return RequestInvalid.of([Violation(field, f"the engine refuses it: {said}")])
    if _FULL.search(message):
        return Overloaded("the engine's queue is full", retry_after_s=1.0)
    if _AWAY.search(message) or ADAPTER_MISSING.search(message):
        return StageUnavailable("the engine does not serve the model now", retry_after_s=1.0)
    return InternalError("the engine failed")
