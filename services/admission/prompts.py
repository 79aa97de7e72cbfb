"""From what a caller wrote to the tokens of a prompt, and from tokens back to text."""

import asyncio

from libs.errors import RequestInvalid, Violation
from libs.tokens.detokenize import Detokenizer
from libs.tokens.template import TemplateRefusedError
from libs.tokens.tokenizer import Tokenizer
from services.admission.request import Request

LONG_TEXT = 20_000
"""Characters from which tokenizing (about 0.5 µs each) is moved off the event loop."""


async def tokenize(request: Request, tokenizer: Tokenizer) -> list[int]:
    """The prompt's tokens. Raises RequestInvalid when the model's template refuses the chat."""

    def encode() -> list[int]:
        if request.chat is not None:
            return tokenizer.render_chat([(turn.role, turn.content) for turn in request.chat])
        return tokenizer.encode(request.prompt or "", add_special=True)

    length = len(request.prompt or "") + sum(len(turn.content) for turn in request.chat or ())
    try:
        return await asyncio.to_thread(encode) if length > LONG_TEXT else encode()
    except TemplateRefusedError as refusal:
        raise RequestInvalid.of([Violation("chat.messages", str(refusal))]) from refusal


def detokenizer(request: Request, tokenizer: Tokenizer) -> Detokenizer | None:
    """Where text is wanted, or has to be looked at for stop strings."""
    return Detokenizer(tokenizer) if request.text or request.sampling.stop else None
