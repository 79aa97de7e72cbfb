"""The tokenizers of the catalogue's models, loaded in the background as the catalogue changes."""

import asyncio
import ctypes
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import structlog

from libs.catalogue import ModelSpec
from libs.errors import StageUnavailable
from libs.models.tokenizer_files import tokenizer_files
from libs.tasks import Tasks
from libs.tokens.detokenize import Detokenizer
from libs.tokens.tokenizer import FILES, Tokenizer

log = structlog.get_logger()

RETRY_S = 5.0
"""Between two attempts to load a tokenizer that could not be loaded."""

Load = Callable[[str, Path], Tokenizer]
"""Loads the tokenizer of a model's source, given the cache directory; blocks; any error is logged."""


class Tokenizers:
    """One tokenizer per source; models that share a source share it."""

    def __init__(self, load: Load, cache_dir: Path, tasks: Tasks) -> None:
        self._load = load
        self._cache_dir = cache_dir
        self._tasks = tasks
        self._settled = asyncio.Event()
        self._sources: dict[str, str] = {}
        self._loaded: dict[str, Tokenizer] = {}
        self._loading: set[str] = set()
        self._untried: set[str] = set()

    def want(self, models: Mapping[str, ModelSpec]) -> None:
        """Replaces the catalogue. Begins to load what is new, forgets what is gone."""
        self._sources = {name: spec.tokenizer_source for name, spec in models.items()}
        wanted = set(self._sources.values())
        self._loaded = {source: tokenizer for source, tokenizer in self._loaded.items() if source in wanted}
        for source in wanted - self._loaded.keys() - self._loading:
            self._loading.add(source)
            self._untried.add(source)
            self._tasks.spawn(self._fetch(source), f"tokenizer {source}")

    def get(self, model: str) -> Tokenizer:
        """The tokenizer of a model of the catalogue. Raises StageUnavailable while it is being loaded."""
        tokenizer = self._loaded.get(self._sources.get(model, ""))
        if tokenizer is None:
            raise StageUnavailable(f"the tokenizer of {model} is being loaded", retry_after_s=1.0)
        return tokenizer

    async def loaded(self) -> None:
        """Returns once every tokenizer of the catalogue has been tried."""
        while self._untried:
            self._settled.clear()
            await self._settled.wait()

    async def _fetch(self, source: str) -> None:
        try:
            while source in self._sources.values():
                try:
                    self._loaded[source] = await asyncio.to_thread(self._load, source, self._cache_dir)
                    log.info("tokenizer loaded", source=source)
                    return
                except Exception:  # whatever is wrong with one model's files, the others go on
                    log.exception("tokenizer failed to load", source=source, retry_s=RETRY_S)
                self._tried(source)
                await asyncio.sleep(RETRY_S)
        finally:
            self._loading.discard(source)
            self._tried(source)

    def _tried(self, source: str) -> None:
        self._untried.discard(source)
        self._settled.set()


_LOADED: WeakValueDictionary[str, Tokenizer] = WeakValueDictionary()
"""By what their files hold: different sources often have the same one, and it takes 20 MB."""
_LOADING = Lock()


def load_tokenizer(source: str, cache_dir: Path) -> Tokenizer:
    """The tokenizer of a model's source, the same for the same files; blocks. Used once here: its first use takes
    90 ms."""
    folder = tokenizer_files(source, cache_dir)
    with _LOADING:
        content = _digest(folder)
        tokenizer = _LOADED.get(content)
        if tokenizer is None:
            tokenizer = _LOADED[content] = Tokenizer.load(folder)
            Detokenizer(tokenizer).push(tokenizer.encode("warm"))
            if tokenizer.has_chat_template:
                tokenizer.render_chat([("user", "warm")])
            _give_back()
        return tokenizer


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in FILES:
        data = file.read_bytes() if (file := folder / name).is_file() else b""
        digest.update(len(data).to_bytes(8) + data)
    return digest.hexdigest()


def _give_back() -> None:
    """Gives memory that is free back to the system: a vocabulary is read through twice of what it comes to, and the C
    library would keep that."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)
