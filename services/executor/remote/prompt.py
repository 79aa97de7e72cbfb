"""Prompts as text, for APIs that take no token ids. Pure."""

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer as Encoder

from libs.errors import NotSupported
from libs.tokens.tokenizer import Tokenizer
from services.executor.remote.request import Api
from services.executor.stream.prompt import PromptText


class Prompts:
    """Writes prompts.

    Args:
        encoder: The tokenizer as it stands in its tokenizer.json: the endpoint's own, where that is of the model.
    """

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder) -> None:
        self._tokenizer = tokenizer
        self._text = PromptText(encoder)
        self._before = encoder.encode("", add_special_tokens=True).ids

    def writer(self, api: Api) -> Callable[[Sequence[int]], str]:
        """How that API wants them."""
        return self._tokenizer.decode if api == "chat" else self._with_controls

    def _with_controls(self, tokens: Sequence[int]) -> str:
        """With control tokens as their text. Raises NotSupported for a prompt that text cannot carry."""
        count = len(self._before)
        if count and list(tokens[:count]) == self._before:  # the endpoint's tokenizer puts them there itself
            tokens = tokens[count:]
        try:
            return self._text.text(tokens)
        except NotSupported:
            raise NotSupported(
                "the prompt holds the text of a control token, which an endpoint that takes text would take for the "
                "token: use the chat API, or the completions API with token ids"
            ) from None
