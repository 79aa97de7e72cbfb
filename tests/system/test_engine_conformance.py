"""Every engine of the default run against every check of engine_conformance.py."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from tests.system.engine_conformance import CHECKS, LOADING_CHECKS, Loaded, Subject, loaded
from tests.system.engine_subjects import SUBJECTS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(SUBJECTS))
async def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Subject]:
    async with SUBJECTS[request.param](tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model(subject: Subject) -> AsyncIterator[Loaded]:
    """Shared by the checks that leave it as they found it."""
    async with loaded(subject) as it:
        yield it


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_loaded(model: Loaded, check: Callable[[Loaded], Awaitable[None]]) -> None:
    await check(model)
    await model.idle()
    assert not model.heard.faults
    assert not model.heard.broken


@pytest.mark.parametrize("check", LOADING_CHECKS, ids=lambda check: check.__name__)
async def test_loading(subject: Subject, check: Callable[[Subject], Awaitable[None]]) -> None:
    await check(subject)
