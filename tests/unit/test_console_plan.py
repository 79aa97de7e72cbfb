"""Which processes and ports a mesh has."""

from dataclasses import replace
from pathlib import Path

import pytest

from services.console.mesh.plan import Options, OptionsInvalid, draw, in_restart_order, in_stop_order

OPTIONS = Options(state_dir=Path("/s"), policy_dir=Path("/p"), cache_dir=Path("/c"))


def test_the_default_mesh_has_the_documented_ports() -> None:
    plan = draw(OPTIONS)
    assert {part.name: part.port for part in plan.components} == {
        "etcd": 8471, "kvcache-1": 8431, "placement-1": 8441, "executor-1": 8451, "batcher-1": 8421,
        "router-1": 8411, "admission-1": 8401, "envoy": 8400,
    }  # fmt: skip
    assert (plan.target, plan.etcd, plan.sink_port) == ("127.0.0.1:8400", "127.0.0.1:8471", 8482)
    assert plan.ports()[8481] == "envoy (admin)"
    assert plan.ports()[8501] == "admission-1 (metrics)"
    assert plan.ports()[8482] == "supervisor (spans from Envoy)"


def test_every_process_gets_its_settings() -> None:
    executor = draw(replace(OPTIONS, executors=2, engine="simulated")).of("executor")[1]
    assert executor.settings == {
        "HEADRACE_INSTANCE": "executor-2",
        "HEADRACE_LISTEN": "127.0.0.1:8452",
        "HEADRACE_METRICS_PORT": "8552",
        "HEADRACE_STATE_DIR": "/s",
        "HEADRACE_ETCD": "127.0.0.1:8471",
        "HEADRACE_CACHE_DIR": "/c",
        "HEADRACE_ENGINE": "simulated",
    }


def test_without_envoy_the_first_admission_is_the_door() -> None:
    plan = draw(replace(OPTIONS, envoy=False, admissions=2, port=9000))
    assert [part.port for part in plan.of("admission")] == [9000, 9002]
    assert plan.target == "127.0.0.1:9000"
    assert plan.sink_port is None
    assert not plan.of("envoy")


def test_a_collector_takes_the_place_of_the_sink() -> None:
    assert draw(replace(OPTIONS, otlp_endpoint="localhost:4317")).sink_port is None


def test_a_monolith_has_the_ports_of_its_services() -> None:
    plan = draw(replace(OPTIONS, monoliths=2))
    assert [part.name for part in plan.components] == [
        "etcd", "placement-1", "executor-1", "monolith-1", "monolith-2", "envoy"
    ]  # fmt: skip
    second = plan.of("monolith")[1]
    assert second.port == 8402, "its door"
    assert second.ports[8402] == "gRPC"
    assert second.ports[8502] == "metrics"
    assert second.ports[8422] == "batcher's gRPC"
    assert second.ports[8532] == "kvcache's metrics"
    assert second.settings["HEADRACE_INSTANCE"] == "monolith-2"
    assert second.settings["HEADRACE_ROUTER_LISTEN"] == "127.0.0.1:8412"
    assert second.settings["HEADRACE_ROUTER_METRICS_PORT"] == "8512"
    assert draw(replace(OPTIONS, monoliths=1, envoy=False)).of("monolith")[0].port == 8400, "the door"


def test_monoliths_and_their_services_apart_are_one_or_the_other() -> None:
    with pytest.raises(OptionsInvalid) as caught:
        draw(replace(OPTIONS, monoliths=10, routers=2, kvcaches=3))
    assert str(caught.value).splitlines() == [
        "--routers 2: --monoliths 10 have one each",
        "--kvcaches 3: --monoliths 10 have one each",
        "--monoliths 10: from 1 to 9",
    ]


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        replace(OPTIONS, executors=19, admissions=9, routers=9, batchers=9),
        replace(OPTIONS, executors=19, monoliths=9),
    ],
)
def test_no_two_processes_want_one_port(options: Options) -> None:
    plan = draw(options)
    wanted = [port for part in plan.components for port in part.ports]
    assert len(wanted) == len(set(wanted))


def test_all_faults_come_at_once() -> None:
    with pytest.raises(OptionsInvalid) as caught:
        draw(replace(OPTIONS, engine="steam", executors=0, routers=10, port=80))
    faults = {line.partition(":")[0] for line in str(caught.value).splitlines()}
    assert faults == {"--engine steam", "--executors 0", "--routers 10", "--port 80"}


def test_an_etcd_port_of_its_own_must_not_hit_another() -> None:
    assert draw(replace(OPTIONS, etcd_port=2379)).etcd == "127.0.0.1:2379"
    with pytest.raises(OptionsInvalid, match="port 8451 would be both etcd's and executor-1's"):
        draw(replace(OPTIONS, etcd_port=8451))


def test_stopping_goes_from_the_clients_inwards() -> None:
    groups = in_stop_order(draw(replace(OPTIONS, executors=2)).components)
    assert [[part.name for part in group] for group in groups] == [
        ["envoy"], ["admission-1"], ["router-1"], ["batcher-1"], ["executor-1", "executor-2"], ["kvcache-1"],
        ["placement-1"], ["etcd"],
    ]  # fmt: skip


def test_a_rolling_restart_goes_from_etcd_outwards_and_leaves_the_door() -> None:
    parts = draw(replace(OPTIONS, executors=2, kvcaches=2, placements=2)).components
    services = {part.name: part.service for part in parts}
    assert in_restart_order([], services) == [
        "etcd", "kvcache-1", "kvcache-2", "placement-1", "placement-2", "executor-1", "executor-2", "batcher-1",
        "router-1", "admission-1",
    ]  # fmt: skip
    assert in_restart_order(["envoy", "router", "executor-2", "executor-2"], services) == [
        "executor-2", "router-1", "envoy",
    ]  # fmt: skip
    with pytest.raises(KeyError, match="kitchen"):
        in_restart_order(["router", "kitchen"], services)


def test_admission_waits_for_envoy_to_notice_where_there_is_one() -> None:
    for envoy, expected in ((True, "0.5"), (False, "0")):
        (admission,) = draw(replace(OPTIONS, envoy=envoy)).of("admission")
        assert admission.settings["HEADRACE_NOTICE_S"] == expected
