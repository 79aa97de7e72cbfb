"""Degradation ladders on a real mesh whose engine answers one request at a time."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpc import StatusCode, aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.operations.v1 import operations_pb2 as ops
from tests.system.client import BOTH, Answer, Client, ask, connect, details
from tests.system.mesh import Mesh

MODEL = "slow"
ENGINE = {
    "name": MODEL, "source": "simulated:", "engines": ["simulated"], "memory_bytes": 1_000_000,
    "context_tokens": 4096, "blocks": 1000, "block_tokens": 32, "slots": 1, "step_tokens": 512,
    "capabilities": ["chat"], "simulation": {"step_base_us": 20_000, "seed": 3},
}  # fmt: skip
SMALL, ROUTE = "tiny", "either"
TINY = {**ENGINE, "name": SMALL, "slots": 8, "simulation": {"step_base_us": 5000, "seed": 4}}
ROUTES = {ROUTE: {"alias": ROUTE, "model": MODEL, "small_model": SMALL}}
TARGET_S, RECOVER_S = 100.0, 1.0
FIRST = 0.005
"""The saturation of the first rung: half a second of waiting."""
RULES = {
    "default_timeout": "60s", "max_timeout": "60s", "max_waiting": 100, "max_waiting_tokens": 100_000,
    "target_first_token": f"{TARGET_S:g}s", "recover_after": f"{RECOVER_S:g}s",
}  # fmt: skip
LADDERS: Mapping[str, Mapping[str, object]] = {
    "interactive": {
        "tier": "TIER_INTERACTIVE",
        **RULES,
        "ladder": [
            {"name": "short", "at": FIRST, "clamp_output_tokens": 5},
            {"name": "lean", "at": 0.008, "no_extras": True},
            {"name": "small", "at": 0.009, "smaller_model": True},
            {"name": "shut", "at": 100, "reject": True},
        ],
    },
    "async": {
        "tier": "TIER_ASYNC",
        **RULES,
        "ladder": [
            {"name": "brief", "at": FIRST, "clamp_output_tokens": 9},
            {"name": "shut", "at": 0.008, "reject": True},
        ],
    },
}
TOKENS = 60
"""Of the answers that are the load: 1.2 s each."""
RISE_S = 1.0
TENANTS = {"crowd": False, "vip": True, "hog": True}
"""Whether each is protected."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder: Path = tmp_path_factory.mktemp("policy")
    tenants = {
        name: {"name": name, "key_sha256": [hashlib.sha256(_key(name).encode()).hexdigest()], "protected": protected}
        for name, protected in TENANTS.items()
    }
    documents: Mapping[str, Mapping[str, object]] = {
        "tenants": tenants, "models": {MODEL: ENGINE, SMALL: TINY}, "tiers": LADDERS, "routes": ROUTES,
    }  # fmt: skip
    for kind, records in documents.items():
        (folder / kind).mkdir()
        for name, record in records.items():
            (folder / kind / f"{name}.yaml").write_text(yaml.safe_dump(record))
    with Mesh(envoy=False, extra_policy=folder) as running:
        yield running


@pytest.fixture
async def operator(mesh: Mesh) -> AsyncIterator[Client]:
    async with connect(mesh.target, mesh.key) as client:
        await _levels_are(client, 0)
        yield client


@pytest.fixture
async def crowd(mesh: Mesh) -> AsyncIterator[Client]:
    async with connect(mesh.target, _key("crowd")) as client:
        yield client


@pytest.fixture
async def hog(mesh: Mesh) -> AsyncIterator[Client]:
    """Makes the load: it is protected, so its answers stay long."""
    async with connect(mesh.target, _key("hog")) as client:
        yield client


@pytest.fixture
async def vip(mesh: Mesh) -> AsyncIterator[Client]:
    async with connect(mesh.target, _key("vip")) as client:
        yield client


async def test_a_saturated_tier_gives_up_what_its_ladder_says(
    operator: Client, crowd: Client, vip: Client, hog: Client
) -> None:
    before = await operator.generate(_ask(20))
    assert before.finish is not None
    assert before.finish.usage.output_tokens == 20
    assert not before.finish.HasField("degradation"), "nothing is told when nothing is given up"
    routed = await operator.generate(_ask(20, model=ROUTE))
    assert routed.finish is not None
    assert routed.finish.model == MODEL
    assert routed.token_ids == before.token_ids
    tiny = await operator.generate(_ask(20, model=SMALL))
    async with _load(hog, pb.TIER_INTERACTIVE) as began:
        state = await _rises(operator, pb.TIER_INTERACTIVE, 1)
        # The wait that is to be seen takes its time; what counts is how soon it is known.
        assert time.monotonic() - began < FIRST * TARGET_S + RISE_S
        assert state.wait >= FIRST
        assert state.saturation >= FIRST
        state = await _rises(operator, pb.TIER_INTERACTIVE, 3)
        assert list(state.rungs) == ["short", "lean", "small"]
        call = crowd.inference.Generate(_ask(20, model=ROUTE), metadata=crowd.metadata, timeout=30)
        responses = [response async for response in call]
        finish = responses[-1].finish
        assert [token for response in responses for token in response.token_ids] == tiny.token_ids[:5]
        assert (finish.model, list(finish.tried)) == (SMALL, []), "it is the tier's choice, and no fallback"
        assert finish.usage.output_tokens == 5
        assert finish.reason == pb.FINISH_REASON_LENGTH
        assert (finish.degradation.level, list(finish.degradation.rungs)) == (3, ["short", "lean", "small"])
        trailers = dict(await call.trailing_metadata())
        assert trailers["headrace-degradation"] == "3; short, lean, small"
        (in_session, by_name), _ = await crowd.session([_ask(20, model=ROUTE), _ask(20)])
        assert in_session.token_ids == tiny.token_ids[:5]
        assert in_session.finish is not None
        assert (in_session.finish.model, in_session.finish.degradation.level) == (SMALL, 3)
        assert by_name.finish is not None
        assert by_name.finish.model == MODEL, "who names a model gets that or nothing"
        spared = await vip.generate(_ask(12, model=ROUTE))
        assert spared.finish is not None
        assert (spared.finish.model, spared.finish.usage.output_tokens) == (MODEL, 12)
        assert not spared.finish.HasField("degradation")
    levels = await _fall(operator, pb.TIER_INTERACTIVE)
    assert [level for level, _ in levels] == [3, 2, 1, 0], "a rung at a time"
    (_, down), (_, out) = levels[2:]
    assert out - down >= RECOVER_S - 0.3, "each after a while of its own; both times are as of a look"


async def test_a_tier_that_rejects_says_so_at_once_and_spares_the_protected(
    operator: Client, crowd: Client, vip: Client, hog: Client
) -> None:
    async with _load(hog, pb.TIER_ASYNC):
        await _rises(operator, pb.TIER_ASYNC, 2)
        began = time.monotonic()
        with pytest.raises(aio.AioRpcError) as refused:
            await crowd.generate(_ask(10, pb.TIER_ASYNC))
        assert time.monotonic() - began < 0.5
        assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED
        told = details(refused.value)
        info: Any = told["ErrorInfo"]
        retry: Any = told["RetryInfo"]
        assert info.reason == "ERROR_REASON_OVERLOADED"
        assert info.metadata["level"] == "2"
        assert 0 < retry.retry_delay.ToTimedelta().total_seconds() <= RECOVER_S
        spared = await vip.generate(_ask(30, pb.TIER_ASYNC))
        assert spared.finish is not None
        assert spared.finish.usage.output_tokens == 9, "all rungs but the last"
        other = await crowd.generate(_ask(6))
        assert other.finish is not None
        assert "shut" not in other.finish.degradation.rungs, "the other tier has a ladder of its own"
    levels = await _fall(operator, pb.TIER_ASYNC)
    assert [level for level, _ in levels] == [2, 1, 0]


async def test_only_operators_may_look(crowd: Client) -> None:
    with pytest.raises(aio.AioRpcError) as refused:
        await _states(crowd)
    assert refused.value.code() is StatusCode.PERMISSION_DENIED


def _key(tenant: str) -> str:
    return f"headrace-test-{tenant}"


def _ask(tokens: int, tier: "pb.Tier.ValueType" = pb.TIER_INTERACTIVE, model: str = MODEL) -> pb.GenerateRequest:
    request = ask(model, f"Please count to {tokens}.", max_tokens=tokens)
    request.tier = tier
    request.output_form = BOTH
    return request


@asynccontextmanager
async def _load(client: Client, tier: "pb.Tier.ValueType") -> AsyncIterator[float]:
    """Some more than can be done at once, until the end of the block; gives when it began."""

    async def one() -> None:
        while True:
            try:
                await client.generate(_ask(TOKENS, tier), into=Answer())
            except aio.AioRpcError as refusal:
                if refusal.code() is not StatusCode.RESOURCE_EXHAUSTED:
                    raise
                await asyncio.sleep(0.2)

    began = time.monotonic()
    tasks = [asyncio.create_task(one()) for _ in range(3)]
    try:
        yield began
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


async def _states(client: Client) -> Mapping[int, ops.LadderState]:
    answer: Any = await client.operations.ListDegradations(ops.ListDegradationsRequest(), metadata=client.metadata)
    return {state.tier: state for state in answer.ladders if state.model == MODEL}


async def _rises(client: Client, tier: int, level: int) -> ops.LadderState:
    async with asyncio.timeout(5):
        while (state := (await _states(client)).get(tier)) is None or state.level < level:
            await asyncio.sleep(0.02)
    return state


async def _fall(client: Client, tier: int) -> list[tuple[int, float]]:
    """Each level down to 0, and when it was seen first."""
    seen: list[tuple[int, float]] = []
    async with asyncio.timeout(15):
        while not seen or seen[-1][0]:
            level = (await _states(client))[tier].level
            if not seen or level != seen[-1][0]:
                seen.append((level, time.monotonic()))
            await asyncio.sleep(0.02)
    return seen


async def _levels_are(client: Client, level: int) -> None:
    async with asyncio.timeout(15):
        while any(state.level != level for state in (await _states(client)).values()):
            await asyncio.sleep(0.05)
