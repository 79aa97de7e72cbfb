"""The text that stands for a prompt's tokens, for engines that take text. Pure."""

from collections.abc import Sequence

from tokenizers import Tokenizer as Encoder

from libs.errors import NotSupported


class PromptText:
    """Writes token ids as text that a server's tokenizer turns into the same control tokens.

    A server that takes text takes the text of a control token for the token, whoever wrote it. A prompt in which
    somebody wrote such text as text is refused: it would change its meaning.

    Args:
        encoder: The model's tokenizer as it stands in its tokenizer.json: the server's.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._special = frozenset(token for token, added in encoder.get_added_tokens_decoder().items() if added.special)
        encoding = encoder.encode("a", add_special_tokens=True)
        self.adds_tokens = any(encoding.special_tokens_mask)
        """Whether the tokenizer puts tokens around a text by itself."""

    def text(self, tokens: Sequence[int]) -> str:
        """The text of a prompt. Raises NotSupported for one that text cannot carry."""
        text = self._encoder.decode(list(tokens), skip_special_tokens=False)
        again = self._encoder.encode(text, add_special_tokens=False).ids
        if self._controls(again) != self._controls(tokens):
            raise NotSupported(
                "the prompt's text holds the text of a control token, which a server that takes text would take for "
                "the token; this model can be asked such things only through an engine that takes token ids"
            )
        return text

    def _controls(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token in self._special]
