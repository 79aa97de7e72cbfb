"""Settings: parsed once, all faults at once."""

import importlib
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from libs.settings import Etcd, Process, SettingsInvalid, parse

LEAST = {"HEADRACE_INSTANCE": "x-0", "HEADRACE_LISTEN": "127.0.0.1:0", "HEADRACE_ETCD": "a:1"}


@dataclass(frozen=True, slots=True)
class Settings:
    process: Process
    etcd: Etcd
    blocks: int = 5
    spread: bool = False


def test_defaults() -> None:
    settings = parse(Settings, LEAST)
    assert settings.process == Process("x-0", "127.0.0.1:0")
    assert settings.etcd == Etcd(("a:1",))
    assert (settings.blocks, settings.spread) == (5, False)


def test_every_kind_of_field() -> None:
    settings = parse(
        Settings,
        {
            **LEAST,
            "HEADRACE_ETCD": "a:1, b:2,,c:3",
            "HEADRACE_ETCD_TLS_DIR": "some/where",
            "HEADRACE_DRAIN_S": "2.5",
            "HEADRACE_METRICS_PORT": " 9000 ",
            "HEADRACE_SPREAD": "TRUE",
            "HEADRACE_BLOCKS": "7",
        },
    )
    assert settings.etcd == Etcd(("a:1", "b:2", "c:3"), Path("some/where"))
    assert settings.process.drain_s == 2.5
    assert settings.process.metrics_port == 9000
    assert (settings.spread, settings.blocks) == (True, 7)


def test_all_faults_at_once() -> None:
    with pytest.raises(SettingsInvalid) as raised:
        parse(
            Settings,
            {
                "HEADRACE_LISTEN": "127.0.0.1:0", "HEADRACE_ETCD": " , ", "HEADRACE_DRAIN_S": "nan",
                "HEADRACE_METRICS_PORT": "9000.5", "HEADRACE_SPREAD": "perhaps",
            },
        )  # fmt: skip
    assert str(raised.value).splitlines() == [
        "HEADRACE_INSTANCE is not set",
        "HEADRACE_METRICS_PORT='9000.5' is not a whole number",
        "HEADRACE_DRAIN_S='nan' is not a number",
        "HEADRACE_ETCD=',' is not a list with commas",
        "HEADRACE_SPREAD='perhaps' is not true or false",
    ]


def test_an_empty_variable_is_not_set() -> None:
    """As compose files and shells write it: X=${X:-}."""
    empty = {"HEADRACE_TLS_DIR": "", "HEADRACE_METRICS_PORT": "", "HEADRACE_LOG_LEVEL": " "}
    assert parse(Settings, {**LEAST, **empty}) == parse(Settings, LEAST)
    with pytest.raises(SettingsInvalid, match="HEADRACE_INSTANCE is not set"):
        parse(Settings, {**LEAST, "HEADRACE_INSTANCE": ""})


def test_the_collector_has_a_name_that_everyone_knows() -> None:
    known = {**LEAST, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}
    assert parse(Settings, known).process.otlp_endpoint == "http://c:4317"
    assert parse(Settings, {**known, "HEADRACE_OTLP_ENDPOINT": "d:1"}).process.otlp_endpoint == "d:1"


@pytest.mark.parametrize("service", ["admission", "router", "batcher", "kvcache", "executor", "placement", "console"])
def test_every_setting_is_in_a_table_of_the_docs(service: str) -> None:
    root = Path(__file__).resolve().parents[2]
    pages = "".join((root / "docs" / page).read_text() for page in ("operations.md", "engines.md", "placement.md"))
    settings = importlib.import_module(f"services.{service}.config").Settings
    names = [field.name for field in fields(settings) if field.name not in ("process", "etcd")]
    names += [field.name for kind in (Process, Etcd) for field in fields(kind)]
    assert [name for name in names if f"| `HEADRACE_{name.upper()}` |" not in pages] == []
