"""The rules of the house that no linter knows, as tests over the tree itself."""

import ast
import filecmp
import os
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SERVICES = ("admission", "router", "batcher", "kvcache", "executor", "placement")
"""The services that know nothing of each other. Console, simulator and monolith compose them, and are not
among them."""

EFFECTS = {
    "asyncio", "etcdserverpb", "google", "grpc", "headrace", "os", "random", "socket", "subprocess", "threading",
    "time", "uuid",
}  # fmt: skip
"""What deciding code does without: the network, time, chance, other processes, and protobuf."""

SHELLS = {"main.py", "service.py", "config.py"}
"""The shell of any service."""

NAMED_SHELLS = {
    "services/admission/catalogue_writer.py": "reads and swaps the catalogue in etcd",
    "services/admission/convert.py": "messages of the public API to values and back",
    "services/admission/generate.py": "one answer on a stream of its own",
    "services/admission/leaving.py": "waits while its requests end",
    "services/admission/front.py": "starts requests: gives them their ids, runs them",
    "services/admission/operations.py": "the servicer of the operations API",
    "services/admission/placement_news.py": "what changed between two pictures, as a message",
    "services/admission/placement_view.py": "joins the registry's messages into what an operator sees",
    "services/admission/policy_source.py": "reads the policy from etcd",
    "services/admission/audit/audit.py": "a queue, and the thread that writes it",
    "services/admission/audit/layer.py": "writes down what operators' calls change",
    "services/admission/audit_operations.py": "the calls of the operations API about the audit log",
    "services/admission/contracts/approvals.py": "questions to a person, in etcd",
    "services/admission/contracts/caller.py": "calls tools over HTTP",
    "services/admission/contracts/conversation.py": "one answer of several steps, in a task",
    "services/admission/contracts/start.py": "gives requests their ids, owns the conversations' tasks",
    "services/admission/contracts/tool_calls.py": "waits for people and tools",
    "services/admission/ladder_operations.py": "the call of the operations API about ladders",
    "services/admission/limits/exchange.py": "tells other processes what tenants ask for, through etcd",
    "services/admission/policy_operations.py": "the calls of the operations API about rules",
    "services/admission/policy_values.py": "messages of the policy to values",
    "services/admission/policy_writer.py": "reads, judges and swaps rules in etcd",
    "services/admission/prompts.py": "tokenizes long texts in a thread",
    "services/admission/router_operations.py": "the call of the operations API about routers",
    "services/admission/saturation_source.py": "reads from etcd what batchers say of themselves",
    "services/admission/switch_operations.py": "the calls of the operations API about kill switches",
    "services/admission/session.py": "many requests on one stream",
    "services/admission/stages.py": "asks the processes of the stages behind",
    "services/admission/pin_operations.py": "the calls of the operations API about pins",
    "services/admission/pin_writer.py": "tokenizes and swaps pins in etcd",
    "services/batcher/demand_report.py": "tells etcd what is asked of the models",
    "services/batcher/executor_source.py": "reads the executors from etcd, connects to them",
    "services/batcher/kvcache_memory.py": "asks the KV-cache manager",
    "services/batcher/look.py": "waits for the KV-cache manager",
    "services/batcher/rule_source.py": "reads the rules from etcd",
    "services/executor/adapter_desk.py": "loads and unloads adapters, in tasks",
    "services/executor/cache_report.py": "finds the KV-cache manager, reports to it",
    "services/executor/child/inbox.py": "the child's end of the socket",
    "services/executor/child/loop.py": "the child of an asynchronous engine: its socket, its works, its end",
    "services/executor/child/process.py": "a child process, and its socket",
    "services/executor/child/start.py": "starts a child, waits for its word",
    "services/executor/child/runner.py": "hears a child on the event loop",
    "services/executor/openvino/child.py": "the engine's process: its loop, its clock, its end",
    "services/executor/openvino/engine.py": "starts a process for each model",
    "services/executor/openvino/grammar.py": "asks a process of its own whether a grammar is one",
    "services/executor/openvino/runner.py": "hears the child on the event loop",
    "services/executor/reconcile.py": "reads placements from etcd, loads and unloads",
    "services/executor/record.py": "what the executor says of itself, as a message",
    "services/executor/remote/endpoint.py": "HTTP",
    "services/executor/remote/engine.py": "asks endpoints, reads tokenizers",
    "services/executor/remote/key.py": "reads a key from its file",
    "services/executor/remote/probe.py": "asks an endpoint what it understands",
    "services/executor/remote/source.py": "works as requests, in real time",
    "services/executor/simulated/engine.py": "takes its steps in real time",
    "services/executor/stream/runner.py": "a task for each work's stream",
    "services/executor/triton/adapters.py": "reads adapters from disk",
    "services/executor/triton/conversation.py": "the stream to the server, and its two tasks",
    "services/executor/triton/engine.py": "loads models onto servers",
    "services/executor/triton/residence.py": "has the server load and unload models",
    "services/executor/triton/runner.py": "keeps the stream, comes back after the server",
    "services/executor/triton/server.py": "the server's unary calls and metrics page",
    "services/executor/triton/source.py": "asks over the stream, logs what the server says",
    "services/executor/trtllm/engine.py": "starts and ends the children",
    "services/executor/trtllm/feed.py": "reads events and statistics of TensorRT-LLM",
    "services/executor/trtllm/model.py": "one model in TensorRT-LLM, in its child",
    "services/executor/vllm/child.py": "the engine's process: its loop, its clock, its end",
    "services/executor/vllm/engine.py": "starts a process for each model",
    "services/executor/vllm/environment.py": "installs vLLM into an environment of its own",
    "services/kvcache/consulting.py": "one Consult stream: messages in, messages out",
    "services/kvcache/reporting.py": "one Report stream: messages in, messages out",
    "services/kvcache/conversation.py": "a standing stream, and its two tasks",
    "services/placement/book.py": "reads and writes the leader's keys in etcd",
    "services/placement/controller.py": "reads and writes etcd while it leads",
    "services/placement/records.py": "the registry's messages to values and back",
    "services/router/catalogue_source.py": "reads the catalogue from etcd",
    "services/router/intents/intents.py": "a thread for the embedding model, and who waits for it",
    "services/router/policy_values.py": "messages of the policy to values",
}
"""Everything else in a service that may have effects, and which. A module that is not here is pure."""

PURE_LIBRARIES = (
    "libs/errors.py", "libs/lane/forwarder.py", "libs/lane/progress.py", "libs/lane/stage.py", "libs/lane/work.py",
    "libs/kvcache/values.py", "libs/registry/keys.py", "libs/tokens",
)  # fmt: skip

PLACES = (
    r"py(pi|thonhosted)\.org", r"npmj[s]\.", r"deb\.debia[n]", r"releases/down[l]oad", r"--(extra-)?inde[x]-url",
    r"(?<![\w.}~])/(work|tmp|home|root)/",
)  # fmt: skip
"""Package indexes, download addresses, and folders of one machine: they change, the repository stays."""

LONGEST, MEDIAN = 300, 120
LONG = {
    "libs/lane/forwarder.py": "one state machine: a work's way through a stage in the middle",
    "libs/telemetry/names.py": "every name of telemetry, in the one place where all can be seen",
    "services/router/journey.py": "one state machine: a work's life in the router, with all its attempts",
    "services/batcher/queue.py": "the whole order of works, in the one place where it can be read",
    "services/batcher/dispatch.py": "one way: from the head of the queue to the engine, with all its turns",
    "services/batcher/stage.py": "one state machine: a work's way through the batcher",
}
"""Modules that may be longer, and why."""


def tracked() -> list[str]:
    """Every file that is or can be committed, from the root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return sorted({path for path in listed.stdout.split("\0") if path and (ROOT / path).is_file()})


FILES = tracked()
MODULES = [path for path in FILES if path.endswith(".py") and not re.search(r"_pb2(_grpc)?\.py$", path)]


def imports(path: str) -> Iterator[str]:
    """The full names of what a module imports, wherever in it; relative imports resolved."""
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse((ROOT / path).read_text(), path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def within(path: str, folder: str) -> bool:
    """Whether a path is a folder (or file), or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def is_shell(path: str) -> bool:
    """Whether a service's module may have effects."""
    in_root_of_service = path.count("/") == 2
    return path in NAMED_SHELLS or (in_root_of_service and Path(path).name in SHELLS)


def foreign(paths: list[str], forbidden: re.Pattern[str]) -> list[str]:
    """A line for each import of a forbidden name."""
    return [f"{path} imports {name}" for path in paths for name in imports(path) if forbidden.match(name)]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_no_other(service: str) -> None:
    modules = [path for path in MODULES if within(path, f"services/{service}")]
    assert modules
    assert not foreign(modules, re.compile(rf"services\.(?!{service}(\.|$))"))


def test_libraries_import_no_service() -> None:
    assert not foreign([path for path in MODULES if within(path, "libs")], re.compile(r"services(\.|$)"))


def test_the_client_stands_alone() -> None:
    """It is a wheel of its own: of this repository it has the public API's stubs, and itself."""
    modules = [path for path in MODULES if within(path, "libs/client")]
    assert not foreign(modules, re.compile(r"services\.|libs\.(?!client(\.|$))|headrace\.(?!inference(\.|$))"))
    absolute = [path for path in modules if re.search(r"^\s*(from|import) libs", (ROOT / path).read_text(), re.M)]
    assert not absolute, "inside the wheel it is not called libs.client"


@pytest.mark.parametrize("service", SERVICES)
def test_decisions_are_pure(service: str) -> None:
    modules = [path for path in MODULES if within(path, f"services/{service}") and not is_shell(path)]
    assert modules
    assert not foreign(modules, re.compile(rf"({'|'.join(EFFECTS)})(\.|$)"))


def test_the_values_between_stages_are_pure() -> None:
    modules = [path for path in MODULES if any(within(path, pure) for pure in PURE_LIBRARIES)]
    assert {pure for pure in PURE_LIBRARIES if not any(within(path, pure) for path in modules)} == set()
    assert not foreign(modules, re.compile(rf"({'|'.join(EFFECTS)})(\.|$)"))


def test_every_service_has_its_shell() -> None:
    shells = [f"services/{service}/{name}" for service in SERVICES for name in ("main.py", "config.py")]
    assert [path for path in shells if path not in MODULES] == []


def test_named_exceptions_exist() -> None:
    """An exception that outlives its module would cover the next one of that name."""
    assert [path for path in [*NAMED_SHELLS, *LONG] if path not in MODULES] == []


def test_only_a_composition_root_reads_the_environment() -> None:
    roots = ("services/console", "libs/process.py", "libs/models", "services/executor/child/process.py")
    readers = [
        path
        for path in MODULES
        if within(path, "libs") or within(path, "services")
        if Path(path).name != "main.py" and not any(within(path, root) for root in roots)
        if re.search(r"\bos\.(environ|getenv)\b", (ROOT / path).read_text())
    ]
    assert readers == []


def test_nothing_waits_in_a_way_that_loses_cancellations() -> None:
    """asyncio.wait_for of Python 3.11 swallows a cancellation that comes together with what it waits for."""
    waiting = re.compile(r"asyncio\.wait_for\(")
    assert [path for path in MODULES if not within(path, "tests") and waiting.search((ROOT / path).read_text())] == []


def test_only_the_errors_layer_aborts_a_call() -> None:
    aborting = [path for path in MODULES if re.search(r"\.abort(_with_status)?\(", (ROOT / path).read_text())]
    outside = [path for path in aborting if not within(path, "libs/rpc") and not within(path, "tests")]
    # Engines abort works, and streams connections: not calls.
    outside = [path for path in outside if not within(path, "services/executor") and not within(path, "libs/streams")]
    assert outside == []


def test_modules_are_short() -> None:
    lines = {path: (ROOT / path).read_text().count("\n") for path in MODULES if not within(path, "tests")}
    long = {path: count for path, count in lines.items() if count > LONGEST and path not in LONG}
    assert not long, "split them, or give the reason in LONG"
    assert statistics.median(count for count in lines.values() if count > 1) <= MEDIAN


def test_every_module_says_what_it_is() -> None:
    sources = {path: (ROOT / path).read_text() for path in MODULES if not within(path, "tests")}
    assert [path for path, source in sources.items() if source.strip() and not source.startswith('"""')] == []


def test_the_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent  # protoc looks for its plug-ins on the PATH
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    generator = [sys.executable, str(ROOT / "protos/generate.py"), str(tmp_path)]
    subprocess.run(generator, check=True, env=environment, timeout=60)
    fresh = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*_pb2*.py*")}
    committed = {path.removeprefix("protos/") for path in FILES if re.search(r"^protos/.*_pb2(_grpc)?\.pyi?$", path)}
    assert fresh == committed, "run `make proto`"
    _, different, errors = filecmp.cmpfiles(tmp_path, ROOT / "protos", sorted(fresh), shallow=False)
    assert (different, errors) == ([], []), "run `make proto`"


def test_the_lock_holds_hashes_of_all_that_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.split(r"[\[=<>~!; ]", line, maxsplit=1)[0].lower().replace("_", "-") for line in declared}
    lock = (ROOT / "deploy/requirements.lock").read_text().replace("\\\n", " ")
    locked = {line.split("==")[0]: line for line in lock.splitlines() if line and not line.startswith("#")}
    assert names - locked.keys() == set(), "run `make lock`"
    assert [line for line in locked.values() if "--hash=sha256:" not in line or "://" in line] == []


def test_the_tree_names_no_place() -> None:
    named = []
    for path in FILES:
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:  # a picture
            continue
        found = re.search("|".join(PLACES), text)
        if found:
            named.append(f"{path}: {found[0]}")
    assert named == []
