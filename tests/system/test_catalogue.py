"""The catalogue by hand, in a real mesh: `headrace apply`, `models`, `placements`, and the calls behind them."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from google.rpc import error_details_pb2
from grpc import StatusCode, aio

from headrace.operations.v1 import operations_pb2 as pb
from headrace.registry.v1 import registry_pb2
from tests.system.client import connect, details
from tests.system.mesh import Mesh

READER = "headrace-reader-key"
MODEL = """\
name: {name}
source: "simulated:"
engines: [simulated]
replicas: {replicas}
memory_bytes: 16000000
adapter_memory_bytes: 2000000
context_tokens: 8192
blocks: 512
block_tokens: 32
slots: 16
step_tokens: 512
capabilities: [chat, log_probs]
simulation: {{step_base_us: 1000, load_us: 200000, seed: {seed}}}
"""
ADAPTER = """\
name: {name}
base: {base}
source: "simulated:"
memory_bytes: 1000000
"""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(engine="simulated", executors=2, envoy=False) as running:
        yield running


def model(name: str, *, replicas: int = 1, seed: int = 1, **fields: object) -> str:
    """An entry as YAML; more fields as JSON, which is YAML too."""
    more = "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items())
    return MODEL.format(name=name, replicas=replicas, seed=seed) + more


def entry(name: str, **fields: object) -> registry_pb2.Model:
    """The same as a message."""
    made = registry_pb2.Model(
        name=name, source="simulated:", engines=["simulated"], replicas=1, memory_bytes=16_000_000,
        context_tokens=8192, blocks=512, block_tokens=32, slots=16, step_tokens=512,
    )  # fmt: skip
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def names(mesh: Mesh) -> set[str]:
    shown = mesh.command("models", "--json")
    assert shown.returncode == 0, shown.stderr
    return {each["model"]["name"] for each in json.loads(shown.stdout)}


def test_a_file_is_shown_written_waited_for_and_answers(mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(model("boat", replicas=2) + "---\n" + ADAPTER.format(name="boat-tuned", base="boat"))
    dry = mesh.command("apply", "-f", str(file), "--dry-run", "--exit-code")
    assert dry.returncode == 2, dry.stderr
    assert "+ boat  new: boat@" in dry.stdout
    assert "+ boat-tuned  new: adapter of boat" in dry.stdout
    assert "boat" not in names(mesh)
    applied = mesh.command("apply", "-f", str(file), "--wait", "--timeout", "30", timeout_s=60)
    assert applied.returncode == 0, applied.stdout + applied.stderr
    assert "boat  ready  2 of 2 copies, on executor-1, executor-2" in applied.stdout
    for name in ("boat", "boat-tuned"):
        answer = mesh.command("generate", "x", "--model", name, "--max-tokens", "2")
        assert answer.returncode == 0, answer.stderr
    again = mesh.command("apply", "-f", str(file), "--exit-code")
    assert (again.returncode, "0 new, 0 changed, 2 unchanged" in again.stdout) == (0, True), again.stdout + again.stderr
    shown = mesh.command("models").stdout
    row = next(line for line in shown.splitlines() if line.startswith("boat"))
    assert "2 of 2" in row
    assert "executor-1, executor-2" in row
    tuned = next(line for line in shown.splitlines() if "boat-tuned" in line)
    assert "executor-" in tuned, "it lies in memory where it was asked for"
    placed = mesh.command("placements", "boat").stdout
    assert placed.count("● READY") == 2
    assert "adapters: boat-tuned" in placed
    assert "simulated@" not in placed


def test_a_new_version_rolls_out_and_a_label_does_not(mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(model("roll"))
    assert mesh.command("apply", "-f", str(file), "--wait", "--timeout", "30", timeout_s=60).returncode == 0
    file.write_text(model("roll", labels={"owner": "me"}))
    labeled = mesh.command("apply", "-f", str(file), "--wait", "--timeout", "30", timeout_s=60)
    assert labeled.returncode == 0, labeled.stderr
    assert "stays loaded as it is" in labeled.stdout
    assert [line.split() for line in labeled.stdout.splitlines()][1] == ["labels.owner", "unset", "→", "me"]
    file.write_text(model("roll", seed=2, labels={"owner": "me"}))
    rolled = mesh.command("apply", "-f", str(file), "--wait", "--timeout", "30", timeout_s=60)
    assert rolled.returncode == 0, rolled.stdout + rolled.stderr
    assert "rolls out roll@" in rolled.stdout
    assert "simulation.seed  1 → 2" in rolled.stdout
    (found,) = [each for each in json.loads(mesh.command("models", "--json").stdout) if each["model"]["name"] == "roll"]
    assert {copy["version"] for copy in found["status"]["copies"]} == {found["status"]["version"]}


def test_waiting_ends_with_the_reason_when_it_is_in_vain(mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(model("giant").replace("memory_bytes: 16000000", "memory_bytes: 999000000000", 1))
    failed = mesh.command("apply", "-f", str(file), "--wait", "--timeout", "30", timeout_s=60)
    assert failed.returncode == 1
    assert "written, but not in force" in failed.stderr
    assert "giant: 0 of 1 copies" in failed.stderr
    assert "too small" in failed.stderr
    assert mesh.command("placements").stdout.count("giant: none of 2 executors can hold it") == 1


def test_every_fault_of_every_document_is_told_at_once_and_nothing_written(mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(
        model("Wrong@1", scaling={"min": 3, "max": 2}) + "sorce: x\n---\n"
        + ADAPTER.format(name="orphan", base="nobody") + "slots: 3\n---\n" + model("fine")
    )  # fmt: skip
    refused = mesh.command("apply", "-f", str(file))
    assert refused.returncode == 1
    assert "nothing was written: 5 things are wrong" in refused.stderr
    for part in (
        "models.yaml:1: document 1: name: 'Wrong@1' is not a name",
        "models.yaml:14: document 1: scaling.min: 3 is more than scaling.max, 2",
        "models.yaml:15: document 1: sorce: Model has no such field; did you mean 'source'?",
        "models.yaml:18: document 2: base: there is no model 'nobody'",
        "models.yaml:21: document 2: slots: an adapter has that of its base, 'nobody': remove it here",
    ):
        assert part in refused.stderr
    assert not names(mesh) & {"fine", "orphan"}


def test_the_mesh_s_own_refusal_is_told_at_its_line(mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("# a comment\n" + model("default"))
    refused = mesh.command("apply", "-f", str(file))
    assert refused.returncode == 1
    assert "models.yaml:2: name: 'default' is the alias of a route already" in refused.stderr
    pruned = mesh.command("apply", "-f", str(tmp_path), "--prune", "--dry-run")
    assert pruned.returncode == 1
    assert "'smollm2' cannot be taken out: the route 'default' leads to it" in pruned.stderr


def test_only_an_operator_comes_in(mesh: Mesh) -> None:
    for command in (["models"], ["placements"], ["placements", "--watch"]):
        refused = mesh.command(*command, "--key", READER)
        assert refused.returncode == 1
        assert "this needs an operator's key: tenant reader is not an operator" in refused.stderr
    nobody = mesh.command("models", "--target", "127.0.0.1:9", "--key", "x")
    assert nobody.returncode == 1
    assert "no mesh answers at 127.0.0.1:9" in nobody.stderr


async def test_violations_have_field_paths_and_a_dry_run_writes_nothing(mesh: Mesh) -> None:
    async with connect(mesh.target, mesh.key) as client:
        bad = entry("bad")
        bad.scaling.min = 2
        with pytest.raises(aio.AioRpcError) as caught:
            await client.operations.ApplyModels(
                pb.ApplyModelsRequest(models=[entry("good"), bad, entry("")]), metadata=client.metadata
            )
        assert caught.value.code() is StatusCode.INVALID_ARGUMENT
        told = details(caught.value)["BadRequest"]
        assert isinstance(told, error_details_pb2.BadRequest)
        assert {violation.field for violation in told.field_violations} == {"models[1].scaling.max", "models[2].name"}
        dry = await client.operations.ApplyModels(
            pb.ApplyModelsRequest(models=[entry("good")], dry_run=True), metadata=client.metadata
        )
        assert [(c.model, c.kind, c.revision) for c in dry.changes] == [("good", pb.CHANGE_KIND_ADDED, 0)]
    assert not names(mesh) & {"good", "bad"}


async def test_of_operators_who_saw_the_same_one_wins_and_the_others_hear_who(mesh: Mesh) -> None:
    async with connect(mesh.target, mesh.key) as client:

        async def apply(slots: int, expected: int) -> pb.ModelChange:
            request = pb.ApplyModelsRequest(
                models=[entry("raced", slots=slots)], expected_revisions={"raced": expected}
            )
            (change,) = (await client.operations.ApplyModels(request, metadata=client.metadata)).changes
            assert isinstance(change, pb.ModelChange)
            return change

        first = await apply(16, 0)
        results = await asyncio.gather(*(apply(20 + n, first.revision) for n in range(8)), return_exceptions=True)
        won = [result for result in results if isinstance(result, pb.ModelChange)]
        lost = [result for result in results if isinstance(result, aio.AioRpcError)]
        assert (len(won), len(lost)) == (1, 7)
        for error in lost:
            assert error.code() is StatusCode.ABORTED
            info = details(error)["ErrorInfo"]
            assert isinstance(info, error_details_pb2.ErrorInfo)
            assert info.reason == "ERROR_REASON_CATALOGUE_CHANGED"
            assert dict(info.metadata) | {"request_id": ""} == {
                "models": "raced",
                "changed_by": "dev",
                "request_id": "",
            }
            assert f"raced was changed by dev 0 s ago: slots 16 → {won[0].fields[0].after}" in (error.details() or "")
        models, token = [], ""
        while True:
            page = await client.operations.ListModels(
                pb.ListModelsRequest(page_size=1, page_token=token), metadata=client.metadata
            )
            models += page.models
            assert [status.model for status in page.statuses] == [each.name for each in page.models]
            if not (token := page.next_page_token):
                break
        assert str(next(each.slots for each in models if each.name == "raced")) == won[0].fields[0].after


async def test_a_prune_does_not_remove_what_its_author_never_saw(mesh: Mesh) -> None:
    async with connect(mesh.target, mesh.key) as client:
        every = (await client.operations.ListModels(pb.ListModelsRequest(), metadata=client.metadata)).models
        request = pb.ApplyModelsRequest(models=every, prune=True, dry_run=True)
        seen = (await client.operations.ApplyModels(request, metadata=client.metadata)).changes
        late = pb.ApplyModelsRequest(models=[entry("late")])
        await client.operations.ApplyModels(late, metadata=client.metadata)
        request.dry_run = False
        request.expected_revisions.update({change.model: change.revision for change in seen})
        with pytest.raises(aio.AioRpcError) as caught:
            await client.operations.ApplyModels(request, metadata=client.metadata)
        assert caught.value.code() is StatusCode.ABORTED
        assert "late was added by dev" in (caught.value.details() or "")
    assert "late" in names(mesh)


async def test_a_model_is_deleted_unless_somebody_counts_on_it(mesh: Mesh) -> None:
    async with connect(mesh.target, mesh.key) as client:

        async def delete(name: str, *, force: bool = False) -> pb.DeleteModelResponse:
            request = pb.DeleteModelRequest(name=name, force=force)
            response = await client.operations.DeleteModel(request, metadata=client.metadata)
            assert isinstance(response, pb.DeleteModelResponse)
            return response

        base, adapter = (
            entry("leaving", adapter_memory_bytes=10),
            registry_pb2.Model(name="leaving-too", base="leaving", source="simulated:", memory_bytes=10),
        )
        await client.operations.ApplyModels(pb.ApplyModelsRequest(models=[adapter, base]), metadata=client.metadata)
        for name, force, code, part in (
            ("nobody", False, StatusCode.NOT_FOUND, "the catalogue has no model 'nobody'"),
            ("smollm2", False, StatusCode.INVALID_ARGUMENT, "the route 'default' leads to it"),
            ("leaving", True, StatusCode.INVALID_ARGUMENT, "it is the base of 'leaving-too'"),
        ):
            with pytest.raises(aio.AioRpcError) as caught:
                await delete(name, force=force)
            assert caught.value.code() is code
            assert part in (caught.value.details() or "")
        assert (await delete("leaving-too")).change.kind == pb.CHANGE_KIND_REMOVED
        assert (await delete("leaving")).change.base == ""
    assert not names(mesh) & {"leaving", "leaving-too"}


async def test_a_watch_begins_with_everything_and_goes_on_with_what_changes(mesh: Mesh) -> None:
    async with connect(mesh.target, mesh.key) as client:
        call = client.operations.WatchPlacements(
            pb.WatchPlacementsRequest(models=["watched", "simulated"]), metadata=client.metadata
        )
        first = await asyncio.wait_for(call.read(), 10)
        assert first.snapshot
        assert {copy.model for copy in first.copies} == {"simulated"}
        assert {executor.executor for executor in first.executors} == {"executor-1", "executor-2"}
        watched = entry("watched")
        watched.simulation.load_us = 300_000
        await client.operations.ApplyModels(pb.ApplyModelsRequest(models=[watched]), metadata=client.metadata)
        states: list[str] = []
        end = time.monotonic() + 20
        while "READY" not in states:
            news = await asyncio.wait_for(call.read(), end - time.monotonic())
            assert not news.snapshot
            assert {copy.model for copy in news.copies} <= {"watched", "simulated"}
            states += [
                registry_pb2.ModelState.Name(copy.state).removeprefix("MODEL_STATE_")
                for copy in news.copies
                if copy.model == "watched"
            ]
        assert "LOADING" in states
        listed = await client.operations.ListPlacements(pb.ListPlacementsRequest(), metadata=client.metadata)
        assert {(p.executor, p.model.name) for p in listed.placements} <= {(c.executor, c.model) for c in listed.copies}
        assert {executor.executor for executor in listed.executors} == {"executor-1", "executor-2"}
        await client.operations.DeleteModel(pb.DeleteModelRequest(name="watched"), metadata=client.metadata)
        gone: set[str] = set()
        while not any(pool.startswith("watched@") for pool in gone):
            news = await asyncio.wait_for(call.read(), 20)
            gone |= {copy.pool for copy in news.gone}
        call.cancel()


def test_watching_goes_on_when_what_answers_dies(mesh: Mesh, tmp_path: Path) -> None:
    with mesh.begin("placements", "--watch") as watching:
        assert watching.stdout is not None
        for line in watching.stdout:
            if "simulated@" in line and "READY" in line:
                break
        mesh.kill("admission-1")
        for line in watching.stdout:
            if "the mesh does not answer, trying again" in line:
                break
        mesh.wait_healthy()
        file = tmp_path / "models.yaml"
        file.write_text(model("after"))
        assert mesh.command("apply", "-f", str(file)).returncode == 0
        for line in watching.stdout:
            if "after@" in line and "READY" in line:
                break
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=10)
        assert watching.returncode == 130
        assert "Traceback" not in errors


async def test_while_etcd_is_frozen_nothing_is_written_and_a_watch_says_that_it_may_be_old(mesh: Mesh) -> None:
    mesh.wait_healthy()
    async with connect(mesh.target, mesh.key) as client:
        call = client.operations.WatchPlacements(pb.WatchPlacementsRequest(), metadata=client.metadata)
        assert not (await asyncio.wait_for(call.read(), 10)).stale_since
        etcd = psutil.Process(mesh.pid("etcd"))
        etcd.suspend()
        try:
            request = pb.ApplyModelsRequest(models=[entry("frozen")])
            with pytest.raises(aio.AioRpcError) as caught:
                await client.operations.ApplyModels(request, metadata=client.metadata)
            assert caught.value.code() is StatusCode.UNAVAILABLE
            assert "etcd does not answer; the models were perhaps not written" in (caught.value.details() or "")
            while not (await asyncio.wait_for(call.read(), 20)).stale_since:
                pass
        finally:
            etcd.resume()
        while (await asyncio.wait_for(call.read(), 20)).stale_since:
            pass
        call.cancel()
    mesh.wait_healthy()
