"""The embedding model and the classifier together, as they lie in memory: loaded when needed, reloaded when the
trained file changes, dropped when no route asks. For one thread: it blocks."""

from pathlib import Path
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from services.router.intents.classifier import Classifier
    from services.router.intents.embedder import Embedder

log = structlog.get_logger()


class IntentModel:
    """Intents by the file at a path. A file that cannot be used leaves the one before it in force, and says so once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._missed = False
        self._embedder: Embedder | None = None
        self._classifier: Classifier | None = None
        self.version = 0
        """Grows when answers may differ from those before."""

    @property
    def trained(self) -> bool:
        """Whether there is anything to tell by."""
        return self._classifier is not None

    def refresh(self) -> int:
        """Reads the file if it has changed; returns the version. Raises embedder.EmbedderMissing."""
        try:
            found = self._path.stat()
        except OSError:
            if not (self._missed or self.trained):
                said = "a route asks for intents, and none are trained: they are unknown until"
                log.warning(f"{said} `headrace intents train FOLDER --out {self._path}`")
            self._missed = True
            return self.version
        self._missed = False
        seen = found.st_mtime_ns, found.st_size, found.st_ino
        if seen == self._seen:
            return self.version
        # OpenVINO and NumPy are imported here: a router whose routes have no rules on intents does without them.
        from services.router.intents import stored
        from services.router.intents.embedder import Embedder

        self._seen = seen
        try:
            read = stored.read(self._path)
        except (OSError, stored.StoredInvalid) as error:
            log.error("trained intents cannot be used", error=str(error), in_force=self.trained)
            return self.version
        if self._embedder is None:
            self._embedder = Embedder()
        self._classifier = read.classifier
        self.version += 1
        log.info("intents", known=list(read.classifier.intents), examples_sha256=read.examples_sha256)
        return self.version

    def of(self, text: str) -> tuple[str, float]:
        """The intent and its probability; "" and the probability of none, or 0 when nothing is trained."""
        if self._classifier is None or self._embedder is None:
            return "", 0.0
        return self._classifier.of(self._embedder.vector(text))

    def drop(self) -> None:
        """Gives the memory back."""
        self._embedder = self._classifier = self._seen = None
        self.version += 1
