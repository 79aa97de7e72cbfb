"""The answers of the simulated engine: a function of seed and prompt, and of nothing else.

Token number `position` of an answer is splitmix64(digest, position) (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), where the digest covers the model's seed, the request's seed
and the prompt. Batch, time and the point from which an answer was resumed do not enter: whatever happened on
the way, the same request has the same answer. That is what makes recovery testable to the token.
"""

import math
import struct
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from libs.lane.work import Tokens

FIRST_TOKEN = 1000
TOKEN_COUNT = 2048
"""Answers are made of the ids 1000 to 3047. In SmolLM2's vocabulary these are whole, frequent pieces of
words: no special token, and none that is a part of a character. A power of two, so that all are equally
likely."""

MEAN_TOKENS = 4096
"""Mean length of an answer that may end by itself."""

_CHUNK = 256
"""Tokens computed at once: enough to make NumPy's overhead vanish, few enough to throw away."""

_END = (1 << 64) - 1
"""The position that decides where the answer ends; no answer is that long."""

Words = npt.NDArray[np.uint64]


def digest(model_seed: int, sampling_seed: int | None, prompt: Tokens, adapter: str = "") -> int:
    """64 bits for everything that an answer depends on."""
    head = struct.pack("<Q?Q", model_seed, sampling_seed is not None, sampling_seed or 0)
    salt = blake2b(adapter.encode(), digest_size=16).digest() if adapter else b""
    data = struct.pack(f"<{len(prompt)}I", *prompt)
    return int.from_bytes(blake2b(data, key=head, salt=salt, digest_size=8).digest())


def tokens(digest: int, start: int) -> Iterator[int]:
    """The answer's tokens from position `start` on, without end."""
    return chain.from_iterable(_chunks(digest, start, _to_token))


def log_probs(digest: int, start: int) -> Iterator[float]:
    """Their invented log-probabilities, in (-2, 0], each exact in single precision."""
    return chain.from_iterable(_chunks(digest, start, _to_log_prob))


def length(digest: int) -> int:
    """Tokens after which the answer ends by itself: geometric with mean MEAN_TOKENS, at least 1."""
    uniform = int(_mix(digest, np.array([_END], np.uint64))[0] >> np.uint64(11)) / (1 << 53)
    return 1 + int(math.log1p(-uniform) / math.log1p(-1 / MEAN_TOKENS))


def _chunks(digest: int, start: int, convert: Callable[[Words], npt.NDArray[Any]]) -> Iterator[list[Any]]:
    while True:
        yield convert(_mix(digest, np.arange(start, start + _CHUNK, dtype=np.uint64))).tolist()
        start += _CHUNK


def _mix(digest: int, positions: Words) -> Words:
    words = (positions + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(digest)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _to_token(words: Words) -> Words:
    return words % np.uint64(TOKEN_COUNT) + np.uint64(FIRST_TOKEN)


def _to_log_prob(words: Words) -> npt.NDArray[np.float64]:
    return (words >> np.uint64(52)).astype(np.float64) * (-1 / 2048) + 0.0
