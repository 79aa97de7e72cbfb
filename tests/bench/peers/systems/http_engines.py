"""Systems that send HTTP on to engines with OpenAI's API: routers and proxies. And such an engine alone."""

import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.peers.environments import python_of
from tests.bench.peers.native import program
from tests.bench.peers.phases import Phase
from tests.bench.peers.processes import Process
from tests.bench.peers.systems.system import HOST, HttpSystem

DEATH_STEP_US = 20_000


class Proxy(HttpSystem):
    """In front of two simulated engines, each a process."""

    def start(self) -> None:
        """Engines, then the proxy."""
        self.engine_ports = self.more_ports[:2]
        self.engines = [self._engine(port) for port in self.engine_ports]
        command, env = self.command([f"http://{HOST}:{port}" for port in self.engine_ports])
        self.system = [Process(self.folder, "system", command, self.cores.system, env)]
        self.wait_ready()

    def command(self, engines: Sequence[str]) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        """How the proxy is started, and its environment."""
        raise NotImplementedError

    def pace(self, phase: Phase) -> None:
        """Tells the engines."""
        self._step(phase.step_us)

    def prepare_death(self) -> None:
        """Tells the engines."""
        self._step(DEATH_STEP_US)

    def _engine(self, port: int) -> Process:
        return Process(self.folder, f"engine-{port}", [program("sse_engine"), str(port)], self.cores.load)

    def _step(self, step_us: int) -> None:
        for port in self.engine_ports:
            urllib.request.urlopen(f"http://{HOST}:{port}/control?step_us={step_us}", timeout=5).read()


class Direct(Proxy):
    """No system at all."""

    note = "the simulated engine (C, epoll) alone: what the engines and the client take"
    mortal = False

    def start(self) -> None:
        """One engine, in the system's place."""
        self.engine_ports = [self.port]
        command = [str(program("sse_engine")), str(self.port)]
        self.system = [Process(self.folder, "system", command, self.cores.system)]
        self.wait_ready()


class _Routed(Proxy):
    """The routers have one command line, by descent."""

    environment: str
    module: str
    more: Sequence[str] = ()

    def command(self, engines: Sequence[str]) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        """Quiet, on loopback."""
        head = [str(python_of(self.environment)), *self.module.split()]
        listen = ["--host", HOST, "--port", str(self.port)]
        metrics = ["--prometheus-host", HOST, "--prometheus-port", str(self.more_ports[2])]
        return [*head, *listen, *metrics, *self.more, "--worker-urls", *engines], {"HF_HUB_OFFLINE": "1"}


class VllmRouter(_Routed):
    """As it comes."""

    note = "vllm-router 0.1.17 (Rust), default policy (cache aware)"
    environment, module = "vllm-router", "-m vllm_router.launch_router"
    more: Sequence[str] = ("--log-level", "warning")


class VllmRouterRoundRobin(VllmRouter):
    """Its cheapest policy."""

    note = "vllm-router 0.1.17 (Rust), round robin"
    more = ("--log-level", "warning", "--policy", "round_robin")


class SglangRouter(_Routed):
    """As it comes."""

    note = "sglang-router 0.3.2 (Rust), default policy (cache aware)"
    environment, module, more = "sglang-router", "-m sglang_router.launch_router", ("--log-level", "warn")
    delayed = True


class Smg(_Routed):
    """SGLang's router under its new name."""

    note = "smg 1.13.0 (Rust), default policy"
    environment, module, more = "smg", "-m smg launch", ("--log-level", "warn")


class LiteLlm(Proxy):
    """One worker, no database."""

    note = "LiteLLM proxy 1.106.2 (Python), one worker, no database"

    def command(self, engines: Sequence[str]) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        """Started by its function: the script names the folder in which it was installed."""
        models = "\n".join(
            f"- {{model_name: bench, litellm_params: {{model: openai/bench, api_base: '{engine}/v1', api_key: bench}}}}"
            for engine in engines
        )
        config = self.folder / "litellm.yaml"
        config.write_text(
            f"model_list:\n{models}\nrouter_settings: {{routing_strategy: simple-shuffle, num_retries: 0}}\n"
            "litellm_settings: {telemetry: false, drop_params: true}\ngeneral_settings: {disable_spend_logs: true}\n"
        )
        start = "import sys; from litellm import run_server; sys.argv[0] = 'litellm'; run_server()"
        options = ["--config", str(config), "--host", HOST, "--port", str(self.port), "--num_workers", "1"]
        env = {
            "LITELLM_TELEMETRY": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true", "NO_PROXY": "*",
        }  # fmt: skip
        return [python_of("litellm"), "-c", start, *options], env
