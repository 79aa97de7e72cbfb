"""One step of a conversation as it is read: what the model says, and what of it is shown when. Pure."""

from msgspec.structs import replace

from services.admission.contracts.calls import Call, CallReader, Malformed
from services.admission.generation import Chunk


class Reading:
    """Puts one answer of the model together.

    Args:
        live: It is shown as it is made; else `shown` is what to show once it has been found good.
        exact: Token ids and log-probabilities go with the text.
        text: The client wants text.
        resumed: The text that the client has already, of an answer that goes on.
    """

    def __init__(self, *, live: bool, exact: bool, text: bool, resumed: str = "") -> None:
        self._live = live
        self._exact = exact
        self._wants_text = text
        self._resumed = resumed
        self._begin()

    def _begin(self) -> None:
        self.text = self._resumed
        """All that the model said."""
        self.held = Chunk()
        """What is not shown yet."""
        self._reader = CallReader()

    def restart(self) -> None:
        """The model begins anew."""
        self._resumed = ""
        self._begin()

    def push(self, made: Chunk) -> Chunk:
        """The next piece; returns what is shown of it now."""
        self.text += made.text
        self._hold(replace(made, text=made.text if self._exact else self._reader.push(made.text)))
        return self._release() if self._live else Chunk(waiting=made.waiting)

    def end(self) -> Chunk:
        """The answer is complete; returns what is shown now."""
        if not self._exact:
            self.held.text += self._reader.flush()
        return self._release() if self._live else Chunk()

    @property
    def calls(self) -> list[Call | Malformed]:
        """What the model wants called."""
        return self._reader.calls

    def _hold(self, made: Chunk) -> None:
        held = self.held
        held.version = made.version or held.version
        held.waiting = made.waiting
        held.text += made.text if self._wants_text else ""
        if self._exact:
            held.count += made.count
            held.token_ids += made.token_ids
            held.log_probs += made.log_probs

    def _release(self) -> Chunk:
        held, self.held = self.held, Chunk()
        return held
