"""The key layout: what operators type into etcdctl, so it is pinned here."""

import pytest

from libs import registry
from libs.registry import keys
from libs.registry.transaction import end_of


def test_layout() -> None:
    assert keys.service("router", "router-0") == "/headrace/v1/services/router/router-0"
    assert keys.executor("executor-1") == "/headrace/v1/executors/executor-1"
    assert keys.model("smollm2") == "/headrace/v1/models/smollm2"
    assert keys.change("smollm2") == "/headrace/v1/changes/models/smollm2"
    assert keys.placement("executor-1", "smollm2@1f") == "/headrace/v1/placements/executor-1/smollm2@1f"
    assert keys.unplaced("smollm2") == "/headrace/v1/unplaced/smollm2"
    assert keys.failure("executor-1", "smollm2@1f") == "/headrace/v1/failures/executor-1/smollm2@1f"
    assert keys.demand("batcher-0") == "/headrace/v1/demand/batcher-0"
    assert keys.tenant("search") == "/headrace/v1/policies/tenants/search"
    assert keys.tier("async") == "/headrace/v1/policies/tiers/async"
    assert keys.route("default") == "/headrace/v1/policies/routes/default"
    assert keys.switch("model", "smollm2") == "/headrace/v1/policies/switches/model/smollm2"
    assert keys.leader("placement") == "/headrace/v1/leaders/placement"


def test_each_key_lies_under_its_prefix() -> None:
    assert keys.service("a", "b").startswith(keys.services("a"))
    assert keys.services("a").startswith(keys.SERVICES)
    assert keys.placement("a", "b").startswith(keys.placements("a"))
    assert keys.placements("a").startswith(keys.PLACEMENTS)
    assert keys.unplaced("a").startswith(keys.UNPLACED)
    assert keys.failure("a", "b").startswith(keys.FAILURES)
    assert keys.demand("a").startswith(keys.DEMAND)
    assert keys.executor("a").startswith(keys.EXECUTORS)
    assert keys.model("a").startswith(keys.MODELS)
    assert keys.change("a").startswith(keys.CHANGES)
    assert keys.tenant("a").startswith(keys.TENANTS)
    assert keys.tier("a").startswith(keys.TIERS)
    assert keys.route("a").startswith(keys.ROUTES)
    assert keys.switch("a", "b").startswith(keys.SWITCHES)


@pytest.mark.parametrize("name", ["", "a/b", "/", "a b", "a\n", "\x00"])
def test_a_name_that_would_leave_its_place_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="segment"):
        keys.model(name)
    with pytest.raises(ValueError, match="segment"):
        keys.placement("executor-1", name)


def test_end_of_a_prefix() -> None:
    assert end_of("/a/") == b"/a0"  # "0" follows "/"
    for bad in ("", "ü/"):
        with pytest.raises(ValueError, match="prefix"):
            end_of(bad)


def test_public_names() -> None:
    assert registry.__all__ == sorted(registry.__all__)
    assert {"Announcement", "Election", "EtcdClient", "Mirror", "Registry", "TlsFiles", "keys"} <= set(registry.__all__)
