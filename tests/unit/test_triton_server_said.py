"""What a Triton server says in words and on its metrics page, and the blocks that are believed in."""

import pytest

from libs.errors import HeadraceError, InternalError, Overloaded, RequestInvalid, StageUnavailable
from libs.lane.draft import Draft
from libs.lane.work import FinishReason, Outcome, Sampling, Tier, Work
from services.executor.engine import RunnerStats, Step
from services.executor.triton.blocks import ModelledBlocks
from services.executor.triton.faults import ADAPTER_MISSING, error_of
from services.executor.triton.metrics import BLOCKS, KvBlocks, kv_blocks


@pytest.mark.parametrize(
    ("said", "error", "field"),
    [
        ("[TensorRT-LLM][ERROR] Assertion failed: Prompt length (300) exceeds maximum input length (256).",
         RequestInvalid, "prompt"),
        ("Executor failed process requestId 3 due to the following error: Guided decoding is not enabled",
         RequestInvalid, "grammar"),
        ("Assertion failed: The grammar is invalid: EBNF parse error", RequestInvalid, "grammar"),
        ("Requirement: temperature must be > 0", RequestInvalid, "sampling"),
        ("Exceeds maximum queue size", Overloaded, ""),
        ("Request for unknown model: 'm' is not found", StageUnavailable, ""),
        ("Request for unknown model: 'm' has no available versions", StageUnavailable, ""),
        ("Stub process 'm_0_0' is not healthy.", StageUnavailable, ""),
        ("LoRA task 5 not found in cache. Please send LoRA weights with request", StageUnavailable, ""),
        ("Executor failed process requestId 9 due to the following error: CUDA runtime error", InternalError, ""),
        ("", InternalError, ""),
    ],
)  # fmt: skip
def test_errors(said: str, error: type[HeadraceError], field: str) -> None:
    found = error_of(f"{said}\n  at file.cc:7")
    assert type(found) is error
    assert [each.subject for each in found.violations] == ([field] if field else [])
    if error is InternalError:
        assert "CUDA" not in found.message


def test_a_missing_adapter_is_recognized() -> None:
    assert ADAPTER_MISSING.search("LoRA task 5 not found in cache. Please send LoRA weights with request")
    assert not ADAPTER_MISSING.search("Prompt length (300) exceeds maximum input length (256)")


def page(model: str, **values: float) -> str:
    lines = [
        f'{BLOCKS}{{kv_cache_block_type="{kind}",model="{model}",version="1"}} {value}'
        for kind, value in values.items()
    ]
    return "\n".join(["# HELP x y", "# TYPE x gauge", "nv_cpu_utilization 0.25", *lines, ""])


def test_blocks_on_the_metrics_page() -> None:
    text = page("other", max=9, used=9, tokens_per=9) + page("m", max=500, used=3, tokens_per=64, fraction=0.006)
    assert kv_blocks(text, "m") == KvBlocks(500, 3, 64)
    assert kv_blocks(text, "none") is None
    assert kv_blocks(page("m", max=0, used=0, tokens_per=0), "m") is None, "not filled in yet"
    assert kv_blocks(page("m", max=5, tokens_per=2).replace(" 2", " many"), "m") is None


def work(tokens: int, hashes: list[int]) -> Work:
    sampling = Sampling(max_tokens=10)
    return Work(
        "r", "t", Tier.INTERACTIVE, "m", [1] * tokens, sampling, 0.0, block_hashes=hashes, block_tokens=4
    )  # fmt: skip


def step(*, started: int | None = None, tokens: tuple[int, int, int] | None = None, ended: int | None = None) -> Step:
    made = Step(stats=RunnerStats(1, 2))
    if started is not None:
        made.started.append((started, 0))
    if tokens is not None:
        work_id, offset, count = tokens
        made.frame = Draft([work_id], [offset], [count], [0] * count)
    if ended is not None:
        made.outcomes.append((ended, Outcome(FinishReason.STOP)))
    return made


def test_blocks_are_followed() -> None:
    blocks = ModelledBlocks(8, 4, remembers=True)
    blocks.add(1, work(9, [11, 12]))
    first = step(started=1)
    blocks.follow(first)
    assert [(event.kind, event.hashes) for event in first.events] == [("stored", (11, 12))]
    assert first.stats == RunnerStats(1, 2, 3, 0)
    assert blocks.cached_tokens(work(9, [11, 12])) == 8
    assert blocks.cached_tokens(work(8, [11, 12])) == 4, "the last token is always computed"
    grown = step(tokens=(1, 0, 4))
    blocks.follow(grown)
    assert grown.stats.blocks_used == 4
    last = step(ended=1)
    blocks.follow(last)
    assert (last.stats.blocks_used, last.stats.blocks_cached) == (0, 2)


def test_blocks_of_a_server_that_started_anew() -> None:
    blocks = ModelledBlocks(8, 4, remembers=True)
    blocks.add(1, work(9, [11, 12]))
    blocks.follow(step(started=1))
    blocks.forget()
    lost = step(ended=1)
    blocks.follow(lost)
    assert [event.kind for event in lost.events] == ["cleared"]
    assert blocks.cached_tokens(work(9, [11, 12])) == 0


def test_the_servers_own_count_is_taken() -> None:
    blocks = ModelledBlocks(8, 4, remembers=False)
    blocks.used = 5
    blocks.add(1, work(9, [11, 12]))
    told = step(started=1)
    blocks.follow(told)
    assert told.stats.blocks_used == 5
    assert not told.events
    assert blocks.cached_tokens(work(9, [11, 12])) == 0


def test_works_beyond_the_blocks_are_the_engines_matter() -> None:
    blocks = ModelledBlocks(2, 4, remembers=True)
    blocks.add(1, work(40, [11, 12]))
    for each in (step(started=1), step(tokens=(1, 0, 3)), step(ended=1)):
        blocks.follow(each)
        assert not each.events
