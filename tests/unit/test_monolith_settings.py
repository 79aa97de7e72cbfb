"""Four services' settings in one environment."""

import pytest

from libs.settings import SettingsInvalid
from services.monolith.config import parse

COMMON = {"HEADRACE_INSTANCE": "m-1", "HEADRACE_ETCD": "a:1,b:2", "HEADRACE_LISTEN": "127.0.0.1:0"}


def test_what_is_set_for_all_holds_for_each() -> None:
    settings = parse(COMMON)
    each = (settings.admission, settings.router, settings.batcher, settings.kvcache)
    assert {one.process.instance for one in each} == {"m-1"}
    assert {one.process.listen for one in each} == {"127.0.0.1:0"}
    assert {one.etcd.etcd for one in each} == {("a:1", "b:2")}


def test_what_is_set_for_one_holds_for_it_alone() -> None:
    own = {"HEADRACE_ROUTER_LISTEN": "127.0.0.1:7", "HEADRACE_ADMISSION_NOTICE_S": "3", "HEADRACE_BATCHER_DRAIN_S": ""}
    settings = parse({**COMMON, **own})
    assert settings.router.process.listen == "127.0.0.1:7"
    assert settings.batcher.process.listen == settings.admission.process.listen == "127.0.0.1:0"
    assert settings.admission.notice_s == 3
    assert settings.batcher.process.drain_s == settings.router.process.drain_s, "empty counts as not set"


def test_every_fault_is_told_with_its_service() -> None:
    with pytest.raises(SettingsInvalid) as raised:
        parse({"HEADRACE_ETCD": "a:1", "HEADRACE_LISTEN": "127.0.0.1:0", "HEADRACE_ROUTER_DRAIN_S": "soon"})
    assert str(raised.value).splitlines() == [
        "admission: HEADRACE_INSTANCE is not set",
        "router: HEADRACE_INSTANCE is not set",
        "router: HEADRACE_DRAIN_S='soon' is not a number",
        "batcher: HEADRACE_INSTANCE is not set",
        "kvcache: HEADRACE_INSTANCE is not set",
    ]


def test_a_port_that_several_would_have_is_told() -> None:
    with pytest.raises(SettingsInvalid) as raised:
        parse({**COMMON, "HEADRACE_METRICS_PORT": "9000", "HEADRACE_BATCHER_METRICS_PORT": "0"})
    assert str(raised.value).splitlines() == [
        f"{service}: port 9000 is admission's already; set HEADRACE_{service.upper()}_METRICS_PORT"
        for service in ("router", "kvcache")
    ]
    assert parse({**COMMON, "HEADRACE_ADMISSION_METRICS_PORT": "9000"}).admission.process.metrics_port == 9000
