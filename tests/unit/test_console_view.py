"""What a person reads: the board, log lines, summaries, Envoy's configuration."""

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console, RenderableType

from headrace.registry.v1 import registry_pb2
from libs.client import Finish, Timings, Usage
from services.admission.service import HANDED_BACK
from services.console import board, hints, log_lines
from services.console.commands.generate import summary
from services.console.envoy import Door, Endpoint, render
from services.console.mesh import catalogue
from services.console.mesh.parts import ENVOY_TEMPLATE
from services.console.mesh.snapshot import ComponentSnapshot, MeshSnapshot, ModelSnapshot
from services.console.problem import Problem
from services.console.view import LineView

MESH = MeshSnapshot(
    supervisor=7,
    started=1.0,
    phase="degraded",
    engine="simulated",
    target="127.0.0.1:8400",
    etcd="127.0.0.1:8471",
    state_dir="/s",
    key="k",
    components=(
        ComponentSnapshot("etcd", "etcd", "healthy", 8471, pid=80, started=1.5),
        ComponentSnapshot("router-1", "router", "restarting", 8411, restarts=2, detail="was ended by SIGKILL"),
    ),
    models=(ModelSnapshot("smollm2", "preparing", "building the graph", 0.3),),
)


def shown(what: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_board_has_a_line_for_all_that_there_is(width: int) -> None:
    text = shown(board.render(MESH, {"etcd": board.Usage(12.4, 33_000_000)}), width)
    assert "headrace degraded   127.0.0.1:8400   simulated engine" in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines["etcd"].split() == ["etcd", "●", "healthy", "8471", "80", "12", "%", "33", "MB", "–"]
    assert "restarting" in lines["router-1"]
    assert "30%  building the graph" in lines["smollm2"]
    assert max(len(line) for line in text.splitlines()) <= width


def test_lines_tell_changes_and_nothing_twice() -> None:
    console = Console(file=io.StringIO(), width=200)
    view = LineView(console)
    view.show(MESH)
    view.show(MESH)
    assert isinstance(console.file, io.StringIO)
    assert [line.split()[0] for line in console.file.getvalue().splitlines()] == ["etcd", "router-1", "smollm2", "mesh"]


def test_models_are_as_far_as_the_executors_say() -> None:
    def executor(name: str, *models: registry_pb2.ExecutorModel) -> registry_pb2.Executor:
        return registry_pb2.Executor(instance=name, engine="simulated", models=models)

    def held(name: str, state: registry_pb2.ModelState.ValueType, reason: str = "") -> registry_pb2.ExecutorModel:
        return registry_pb2.ExecutorModel(model=name, state=state, reason=reason)

    ready, loading, failed = (
        registry_pb2.MODEL_STATE_READY,
        registry_pb2.MODEL_STATE_LOADING,
        registry_pb2.MODEL_STATE_FAILED,
    )
    models = [registry_pb2.Model(name=name) for name in ("a", "b", "c", "d")]
    executors = [
        executor("executor-2", held("a", ready), held("b", failed, "no memory"), held("c", failed, "no memory")),
        executor("executor-1", held("a", ready), held("b", loading)),
    ]
    assert catalogue.states(models, executors) == [
        ModelSnapshot("a", "ready", "on executor-1, executor-2", executors=("executor-1", "executor-2")),
        ModelSnapshot("b", "loading", "on executor-1"),
        ModelSnapshot("c", "failed", "on executor-2: no memory"),
        ModelSnapshot("d", "waiting", "for its placement"),
    ]
    assert catalogue.loading(executors)
    assert catalogue.settled(models[:1], executors, 2)
    assert not catalogue.settled(models[:2], executors, 2)
    one = registry_pb2.Model(name="a", replicas=1)
    assert catalogue.settled([one], executors[:1], 2)


def test_log_lines_are_readable() -> None:
    line = json.dumps(
        {"timestamp": "2026-01-02T03:04:05.678901Z", "level": "warning", "service": "router", "instance": "router-1",
         "event": "lane broke", "peer": "batcher-1", "why": "it is gone"}
    )  # fmt: skip
    assert log_lines.pretty(line).plain == '03:04:05.678 warn  lane broke  peer=batcher-1  why="it is gone"'
    assert log_lines.pretty(line, "router-1").plain.startswith("router-1      03:04:05.678 warn")
    etcd = '{"level":"warn","ts":"2026-01-02T03:04:05.678Z","caller":"a.go:1","msg":"slow"}'
    assert log_lines.pretty(etcd).plain == "03:04:05.678 warn  slow  caller=a.go:1"
    failed = json.dumps({"event": "task failed", "level": "error", "exception": "Traceback\n  x\n"})
    assert log_lines.pretty(failed).plain.endswith("task failed\nTraceback\n  x")
    for other in ("plain words", "{half of", "[1]", ""):
        assert log_lines.pretty(other).plain == other


def test_an_answer_is_summed_up_in_one_line() -> None:
    finish = Finish("length", None, Usage(37, 32, 21), Timings(0.0, 0.1, 0.3), "smollm2")
    assert summary(finish, "id-1") == (
        "smollm2 · 37 (32 cached) → 21 tokens · first after 100 ms · 100 tokens/s · cut off at the limit · id-1"
    )
    one = Finish("stop", None, Usage(37, 0, 1), Timings(0.0, 0.1, 0.1), "smollm2")
    assert summary(one, "id-1") == "smollm2 · 37 → 1 tokens · first after 100 ms · id-1"


def test_hints_are_lines_to_copy() -> None:
    text = hints.hints(MESH, " --state-dir x").plain
    assert 'headrace generate --state-dir x "What is the capital of France?"' in text
    assert "authorization: Bearer k" in text
    assert '"model": "smollm2"' in text


def test_a_problem_cuts_endless_lines() -> None:
    console = Console(file=io.StringIO(), width=80)
    Problem("it broke", ["because"], "mend it", ["y" * 10_000]).show(console)
    assert isinstance(console.file, io.StringIO)
    headline, detail, excerpt, advice = console.file.getvalue().splitlines()
    assert (headline, detail, advice) == ("✗ it broke", "  because", "  mend it")
    assert len(excerpt) < 500


def test_envoy_gets_every_admission_and_the_collector() -> None:
    door = Door(
        listen=Endpoint("127.0.0.1", 8400),
        admin=Endpoint("127.0.0.1", 8481),
        admissions=[Endpoint("127.0.0.1", 8401), Endpoint("127.0.0.1", 8402)],
        collector=Endpoint.parse("[::1]:4317"),
        collector_tls=True,
        trace_percent=12.5,
    )
    config = yaml.safe_load(render(ENVOY_TEMPLATE, door))
    admission, collector = config["static_resources"]["clusters"]
    endpoints = admission["load_assignment"]["endpoints"][0]["lb_endpoints"]
    addresses = [end["endpoint"]["address"]["socket_address"] for end in endpoints]
    assert [address["port_value"] for address in addresses] == [8401, 8402]
    assert "transport_socket" in collector
    (listener,) = config["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    sampler = manager["tracing"]["provider"]["typed_config"]["sampler"]["typed_config"]["wrapped_sampler"]
    assert sampler["typed_config"]["sampling_percentage"] == {"numerator": 125_000, "denominator": "MILLION"}
    generate = manager["route_config"]["virtual_hosts"][0]["routes"][-1]["route"]
    assert generate["timeout"] == "0s"
    # Never what has begun: the header stands in front of all else that a call is told.
    assert generate["retry_policy"]["retry_on"] == "connect-failure,refused-stream,retriable-headers"
    (header,) = generate["retry_policy"]["retriable_headers"]
    assert (header["name"], "true") in HANDED_BACK
    assert config["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"


@pytest.mark.parametrize("text", ["localhost", ":4317", "host:port", ""])
def test_an_endpoint_is_a_host_and_a_port(text: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        Endpoint.parse(text)


def test_the_template_has_no_other_variables(tmp_path: Path) -> None:
    template = tmp_path / "t.j2"
    template.write_text("{{ listen.host }} {{ nonsense }}")
    door = Door(Endpoint("h", 1), Endpoint("h", 2), [], Endpoint("h", 3))
    with pytest.raises(Exception, match="'nonsense' is undefined"):
        render(template, door)
