"""The text of answers that are judged: tokenizers of the models of cascades, and of no others."""

from collections.abc import Sequence

from libs.errors import StageUnavailable
from libs.models.tokenizers import Tokenizers
from services.router.route import Catalogue


class AnswerTexts:
    """See context.Texts."""

    def __init__(self, tokenizers: Tokenizers) -> None:
        self._tokenizers = tokenizers

    def want(self, known: Catalogue) -> None:
        """Follows the catalogue."""
        judged = {name for route in known.routes.values() if route.cascade for name in route.cascade.models[:-1]}
        self._tokenizers.want({name: known.models[name] for name in judged if name in known.models})

    def text(self, model: str, tokens: Sequence[int]) -> str | None:
        """None while the model's tokenizer is being loaded."""
        try:
            return self._tokenizers.get(model).decode(tokens)
        except StageUnavailable:
            return None
