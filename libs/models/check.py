"""Whether a prepared model computes what it should. Imports the engine: only for the preparing process.

Three checks, each of which proves something else:

- Agreement: OpenVINO's tokenizer and our own cut the same texts into the same tokens, so what admission
  counts and hashes is what the model was trained on.
- Surprise: the model's mean surprise (negative log-likelihood) at a plain English text is finite and far
  below chance. With a wrong graph, a wrong vocabulary or garbled weights it comes out near ln(vocabulary).
  It does not prove that every weight is right: OpenVINO's faulty reading of Q4_1 weights raises it only from
  2.89 to 3.13 (int8: 2.88).
- Answers, for models that we know: greedy answers without near-ties must come out word for word. That does
  catch the faulty reading.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
import openvino_genai

from libs.models.source import DEFAULT_PACKAGE, SourceInvalid
from libs.tokens.tokenizer import Tokenizer

TEXT = (
    "The water that turns the wheel of a mill is led there by a narrow channel. At its head stands a gate. When "
    "the gate is open, water runs down the channel and falls on the wheel, and the wheel turns the stones that "
    "grind the corn into flour. In the winter the river freezes, and the mill has to stand still until spring."
)
"""Written for this check, so no model has learnt it by heart."""

SAMPLES = (
    TEXT,
    "Zürich, Köln und Łódź – 東京, Москва, القاهرة 🌍👩‍👩‍👧",
    "def f(x):\n\treturn {'a': [1, 22, 333], \"b\": x**2}\n\n  # done\r\n",
    "   leading and trailing spaces   ",
    "I'll say it's 3.14159 or 1,000,000; e-mail: a.b@c.example",
)

MOST_SURPRISE = 0.6
"""Of ln(vocabulary). The default model has 0.27."""

ANSWERS: Mapping[str, Mapping[str, str]] = {
    f"package:{DEFAULT_PACKAGE}": {
        "What is the capital of France?": "The capital of France is Paris.",
        "What is the capital of Japan?": "The capital of Japan is Tokyo.",
        "What is the capital of Italy?": "The capital of Italy is Rome.",
    }
}
"""Greedy answers by model source."""


def check(source: str, folder: Path, tokenizer_folder: Path) -> float:
    """Makes all checks and returns the surprise in nats per token.

    Raises SourceInvalid with the first check that failed.
    """
    tokenizer = Tokenizer.load(tokenizer_folder)
    theirs = openvino_genai.Tokenizer(folder)
    for sample in SAMPLES:
        ours = tokenizer.encode(sample)
        other = theirs.encode(sample, add_special_tokens=False).input_ids.data[0].tolist()
        if ours != other:
            raise SourceInvalid(f"self-check: the tokenizers disagree on {sample[:30]!r}: {ours} and {other}")
    surprise = _surprise(folder, tokenizer.encode(TEXT))
    if answers := ANSWERS.get(source):
        _compare_answers(folder, tokenizer, answers)
    return surprise


def _surprise(folder: Path, ids: list[int]) -> float:
    model = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU")
    tokens = np.array([ids], np.int64)
    inputs: dict[str, npt.NDArray[np.int32] | npt.NDArray[np.int64]] = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.arange(len(ids))[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    names = {name for port in model.inputs for name in port.names}
    outputs = model({name: value for name, value in inputs.items() if name in names})
    logits = np.asarray(outputs[0][0][:-1], np.float64)
    if not np.isfinite(logits).all():
        raise SourceInvalid("self-check: the model's logits are not finite")
    highest = logits.max(-1, keepdims=True)
    log_sums = np.log(np.exp(logits - highest).sum(-1)) + highest[:, 0]
    surprise = float((log_sums - logits[np.arange(len(ids) - 1), ids[1:]]).mean())
    chance = float(np.log(logits.shape[-1]))
    if surprise > MOST_SURPRISE * chance:
        raise SourceInvalid(
            f"self-check: plain English surprises the model by {surprise:.2f} nats per token; chance is {chance:.2f}"
        )
    return surprise


def _compare_answers(folder: Path, tokenizer: Tokenizer, answers: Mapping[str, str]) -> None:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = 16
    pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU")
    config = openvino_genai.GenerationConfig()
    config.apply_chat_template = False
    config.max_new_tokens = 24
    config.eos_token_id = min(tokenizer.eos_ids)
    for question, expected in answers.items():
        prompt = openvino.Tensor(np.array([tokenizer.render_chat([("user", question)])], np.int64))
        [result] = pipeline.generate([prompt], [config])
        answer = tokenizer.decode(result.m_generation_ids[0])
        if answer != expected:
            raise SourceInvalid(f"self-check: to {question!r} the model answers {answer!r}, not {expected!r}")
