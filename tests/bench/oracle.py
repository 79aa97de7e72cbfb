"""How far the embedded engine's answers are from vLLM's with the same weights in 32 bits.

    python -m tests.bench.oracle [--tokens 48]

Asks OpenVINO (int8 weights as prepared, and half precision) and vLLM the same questions, greedily and one at a
time. Prints how many answers are the same, how many tokens come before the first difference, how far the
log-probabilities of these are apart, and how sure vLLM was where they part: a difference at a near-tie says
little, one at a sure token says that something is wrong.
"""

import argparse
import asyncio
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from libs.clock import SystemClock
from libs.models import convert
from libs.models.huggingface import huggingface_folder
from libs.models.source import resolve
from libs.models.store import build_once
from libs.models.tokenizer_files import tokenizer_folder
from libs.tokens.tokenizer import Tokenizer
from services.executor.engine import Engine
from services.executor.openvino.engine import OpenVinoEngine
from services.executor.vllm.engine import VllmEngine
from tests.vllm.loaded import CACHE, PYTHON, SPEC, Loaded, Recorder

QUESTIONS = (
    "What is the capital of France?", "What is the capital of Japan?", "Name three primary colors.",
    "What does a water mill do?", "Explain photosynthesis in one sentence.", "What is 12 times 12?",
    "Who wrote Romeo and Juliet?", "Translate 'good morning' into French.", "Why is the sky blue?",
    "Write a haiku about a river.", "What is the boiling point of water?", "How do I boil an egg?",
    "List the planets of the solar system.", "What is a prime number?", "Give me a synonym for happy.",
    "What is the largest ocean?",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """A greedy answer."""

    tokens: Sequence[int]
    log_probs: Sequence[float]

    def same(self, other: "Answer") -> int:
        """Tokens before the first difference."""
        pairs = zip(self.tokens, other.tokens, strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(other.tokens)))


async def answers(engine: Engine, source: str, tokenizer: Tokenizer, tokens: int) -> list[Answer]:
    """What an engine says to all questions."""
    heard = Recorder()
    await engine.start()
    runner = await engine.load(replace(SPEC, source=source), heard)
    try:
        loaded = Loaded(runner, heard, tokenizer)  # type: ignore[arg-type]  # any runner will do
        found = []
        for question in QUESTIONS:
            work_id = loaded.submit(question, {"log_probs": True}, max_tokens=tokens)
            await heard.ended(work_id)
            found.append(Answer(heard.tokens[work_id], heard.log_probs[work_id]))
        return found
    finally:
        await engine.close()


def in_half_precision(source: str, cache_dir: Path) -> Path:
    """The default model as OpenVINO directory, before its weights are compressed; made once."""
    found = resolve(source)
    assert found.weights is not None
    weights = found.weights

    def build(folder: Path) -> None:
        half = folder / "half.gguf"
        convert.gguf_in_half_precision(weights, half, lambda _share: None)
        convert.openvino_model(half, folder)
        half.unlink()
        for file in tokenizer_folder(found, cache_dir).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    return build_once(cache_dir / "bench" / f"{found.name}-f16", build)


def report(name: str, theirs: Sequence[Answer], oracles: Sequence[Answer]) -> None:
    """Prints a line."""
    pairs = list(zip(theirs, oracles, strict=True))
    same = [a.same(b) for a, b in pairs]
    equal = sum(list(a.tokens) == list(b.tokens) for a, b in pairs)
    tokens = sum(len(b.tokens) for b in oracles)
    apart = [
        abs(a.log_probs[n] - b.log_probs[n]) for (a, b), count in zip(pairs, same, strict=True) for n in range(count)
    ]
    parted = [(b, n) for (a, b), n in zip(pairs, same, strict=True) if n < min(len(a.tokens), len(b.tokens))]
    sure = sorted(math.exp(b.log_probs[n]) for b, n in parted)
    print(
        f"{name}: {equal} of {len(pairs)} answers the same, {sum(same)} of {tokens} tokens "
        f"before the first difference; log-probabilities {statistics.fmean(apart):.4f} apart, "
        f"{max(apart):.3f} at most; probability of vLLM's token where they part: "
        + (", ".join(f"{share:.2f}" for share in sure) or "-")
    )


async def run(tokens: int) -> None:
    """Asks, and prints."""
    source = SPEC.source
    tokenizer = Tokenizer.load(await huggingface_folder(source, CACHE))
    oracles = await answers(VllmEngine(CACHE, SystemClock(), PYTHON), source, tokenizer, tokens)
    half = str(await asyncio.to_thread(in_half_precision, source, CACHE))
    report("half precision", await answers(OpenVinoEngine(CACHE), half, tokenizer, tokens), oracles)
    report("int8", await answers(OpenVinoEngine(CACHE), source, tokenizer, tokens), oracles)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    asyncio.run(run(parser.parse_args().tokens))


if __name__ == "__main__":
    main()
