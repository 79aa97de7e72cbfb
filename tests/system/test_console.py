"""`headrace` as a person runs it: up, status, generate, trace, logs, down, and what can go wrong."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.console.mesh.folder import StateFolder
from services.console.mesh.plan import HOST, STOP_ORDER
from tests.system.mesh import Mesh


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(engine="simulated", executors=2, envoy=True) as running:
        yield running


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def left_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=5)
    return alive


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def test_status_shows_every_component_and_model(mesh: Mesh) -> None:
    mesh.wait_healthy()
    shown = mesh.command("status")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    for name in ("etcd", "kvcache-1", "placement-1", "executor-1", "executor-2", "batcher-1", "router-1",
                 "admission-1", "envoy"):  # fmt: skip
        assert name in shown.stdout
    told = json.loads(mesh.command("status", "--json").stdout)
    assert {component["state"] for component in told["components"]} == {"healthy"}
    assert [(model["name"], model["state"]) for model in told["models"]] == [("simulated", "ready")]
    assert told["models"][0]["detail"] == "on executor-1, executor-2"


def test_status_is_not_well_while_a_component_does_not_answer(mesh: Mesh) -> None:
    mesh.wait_healthy()
    frozen = psutil.Process(mesh.pid("placement-1"))
    frozen.suspend()
    try:
        shown = mesh.command("status")
    finally:
        frozen.resume()
    assert shown.returncode == 1
    assert "no answer within" in shown.stdout
    mesh.wait_healthy()


@pytest.mark.parametrize("door", [[], ["--session"], ["--raw"]])
def test_generate_streams_an_answer_and_says_what_it_took(mesh: Mesh, door: list[str]) -> None:
    mesh.wait_healthy()
    answered = mesh.command("generate", "Say something.", "--max-tokens", "12", "--request-id", "said-1", *door)
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.strip()
    assert "simulated" in answered.stderr
    assert "→ 12 tokens" in answered.stderr
    assert "said-1" in answered.stderr


def test_generate_explains_every_fault(mesh: Mesh) -> None:
    refused = mesh.command("generate", "x", "--temperature", "-1", "--max-tokens", "0")
    assert refused.returncode == 1
    assert "sampling.temperature" in refused.stderr
    assert "sampling.max_tokens" in refused.stderr
    assert "Traceback" not in refused.stderr
    stranger = mesh.command("generate", "x", "--key", "nobody's")
    assert stranger.returncode == 1
    assert "credentials" in stranger.stderr


def test_trace_shows_every_hop_from_the_door_on(mesh: Mesh) -> None:
    mesh.wait_healthy()
    assert mesh.command("generate", "Trace me.", "--max-tokens", "5", "--request-id", "hops-1").returncode == 0
    shown = mesh.command("trace", "hops-1")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    for hop in ("envoy Generate", "admission Generate", "router route", "batcher queue", "batcher dispatch",
                "kvcache lookup", "executor prefill", "executor decode"):  # fmt: skip
        assert any(hop in line for line in lines), f"{hop} is not in\n{shown.stdout}"
    # One tree: the admission span hangs below Envoy's, not beside it.
    assert next(line for line in lines if "admission Generate" in line).startswith("└ ")
    unknown = mesh.command("trace", "no-such-request")
    assert unknown.returncode == 1
    assert "no spans of no-such-request" in unknown.stderr


def test_logs_are_json_lines_of_the_service(mesh: Mesh) -> None:
    shown = mesh.command("logs", "executor", "-n", "5")
    assert shown.returncode == 0
    events = [json.loads(line) for line in shown.stdout.splitlines() if line.startswith("{")]
    assert {event["instance"] for event in events} == {"executor-1", "executor-2"}
    unknown = mesh.command("logs", "kitchen")
    assert unknown.returncode == 1
    assert "router-1" in unknown.stderr


def test_a_policy_is_applied_to_the_running_mesh(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "routes").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "routes" / "nickname.yaml").write_text("alias: nickname\nmodel: twin\n")
    twin = (Path(__file__).parents[2] / "deploy/policy/models/simulated.yaml").read_text()
    (tmp_path / "models" / "twin.yaml").write_text(twin.replace("name: simulated", "name: twin"))
    applied = mesh.command("policy", "apply", str(tmp_path))
    assert applied.returncode == 0, applied.stderr
    assert "2 written, 0 removed" in applied.stdout
    end = time.monotonic() + 10
    while (answer := mesh.command("generate", "x", "--model", "nickname", "--max-tokens", "2")).returncode:
        assert time.monotonic() < end, answer.stderr
    assert "twin" in answer.stderr


@pytest.mark.parametrize("component", ["batcher-1", "envoy", "etcd"])
def test_a_killed_component_is_started_again(mesh: Mesh, component: str) -> None:
    mesh.wait_healthy()
    before = mesh.snapshot().component(component)
    mesh.kill(component)
    mesh.wait_healthy()
    after = mesh.snapshot().component(component)
    assert after.pid != before.pid
    assert (after.port, after.restarts) == (before.port, before.restarts + 1)
    assert mesh.command("generate", "Still there?", "--model", "simulated", "--max-tokens", "2").returncode == 0


def test_a_second_mesh_in_the_same_folder_is_refused(mesh: Mesh) -> None:
    again = mesh.command("up", "--engine", "simulated", "--port", "9000")
    assert again.returncode == 1
    assert f"a mesh runs already in {mesh.state_dir} (supervisor {mesh.snapshot().supervisor})" in again.stderr


def test_a_taken_port_is_named_with_who_wants_it_and_who_holds_it(mesh: Mesh, tmp_path: Path) -> None:
    refused = mesh.command(
        "up", "--engine", "simulated", "--port", str(mesh.port), "--state-dir", str(tmp_path / "other")
    )
    assert refused.returncode == 1
    assert f"port {mesh.port}, wanted by envoy (clients), is held by pid {mesh.pid('envoy')} (envoy" in refused.stderr
    assert f"port {mesh.port + 71}, wanted by etcd (clients)" in refused.stderr
    assert "--port P" in refused.stderr


def test_down_leaves_nothing_behind() -> None:
    with Mesh(engine="simulated") as mesh:
        snapshot = mesh.snapshot()
        processes = family(snapshot.supervisor)
        assert len(processes) >= 1 + len(snapshot.components)
        ports = [component.port for component in snapshot.components]
        assert all(listens(port) for port in ports)
        assert mesh.command("down").returncode == 0
        assert not left_of(processes)
        assert not any(listens(port) for port in ports)
        assert not StateFolder(mesh.state_dir).mesh_file.exists()
        assert mesh.command("status").returncode == 1
        assert "No mesh runs" in mesh.command("down").stdout


def test_a_killed_supervisor_takes_everything_with_it_and_the_next_mesh_starts() -> None:
    with Mesh(engine="simulated", envoy=False) as mesh:
        supervisor = mesh.snapshot().supervisor
        processes = family(supervisor)
        os.kill(supervisor, signal.SIGKILL)
        assert not left_of(processes)
        again = mesh.command("up", "--detach", *mesh.arguments, timeout_s=60)
        assert again.returncode == 0, again.stderr
        assert mesh.command("generate", "Back?", "--max-tokens", "2").returncode == 0


def test_in_the_foreground_ctrl_c_stops_the_mesh_in_order() -> None:
    with Mesh(engine="simulated", up=False) as mesh, mesh.begin("up", *mesh.arguments) as foreground:
        assert foreground.stdout is not None
        shown = []
        for line in foreground.stdout:
            shown.append(line)
            if "headrace down" in line:
                break
        assert any(line.split() == ["mesh", "healthy"] for line in shown), shown
        assert mesh.command("generate", "x", "--max-tokens", "2").returncode == 0
        there = {part.name for part in mesh.snapshot().components}
        processes = family(foreground.pid)
        foreground.send_signal(signal.SIGINT)
        rest, errors = foreground.communicate(timeout=30)
        assert foreground.returncode == 0, errors
        assert "The mesh is down" in rest
        assert not left_of(processes)
        supervisor = mesh.command("logs", "supervisor").stdout
        events = [json.loads(line) for line in supervisor.splitlines()]
        stopped = [event["component"] for event in events if event["event"] == "component is stopped"]
        assert stopped == [name for service in STOP_ORDER for name in (service, f"{service}-1") if name in there]


def test_a_mesh_that_cannot_start_says_why_and_leaves_nothing() -> None:
    with Mesh(engine="simulated", up=False, env={"HEADRACE_LOG_LEVEL": "loud"}) as mesh:
        failed = mesh.command("up", "--detach", *mesh.arguments, timeout_s=60)
        assert failed.returncode == 1
        assert "the mesh could not be started" in failed.stderr
        assert "ended with status 1, 3 times" in failed.stderr
        assert "log level 'loud' is not one of" in failed.stderr
        status = mesh.command("status")
        assert status.returncode == 1
        assert "its last start failed" in status.stderr
        assert not any(listens(mesh.port + offset) for offset in (0, 1, 11, 21, 31, 41, 51, 71))


def test_bad_options_and_policies_are_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "routes").mkdir()
    (tmp_path / "routes" / "lost.yaml").write_text("alias: lost\nmodel: nowhere\ncolour: blue\n")
    with Mesh(engine="simulated", up=False) as mesh:
        refused = mesh.command("up", "--executors", "0", "--engine", "steam")
        assert refused.returncode == 1
        assert "--executors 0: from 1 to 19" in refused.stderr
        assert "--engine steam" in refused.stderr
        refused = mesh.command("up", "--policy", str(tmp_path))
        assert refused.returncode == 1
        assert "routes/lost.yaml" in refused.stderr
        assert not mesh.state_dir.exists()
