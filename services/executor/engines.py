"""The engines that an executor can have. Imports only the one that is asked for."""

import sys

from libs.catalogue.engine_rules import ENGINES
from libs.clock import Clock
from libs.settings import SettingsInvalid
from services.executor.config import Settings
from services.executor.engine import Engine
from services.executor.observe import Observer


def make_engine(settings: Settings, clock: Clock, observer: Observer) -> Engine:
    """Makes the engine that the settings name. Raises SettingsInvalid for a name that is none."""
    match settings.engine:
        case "openvino":
            from services.executor.openvino.engine import OpenVinoEngine

            return OpenVinoEngine(settings.cache_dir, settings.threads, settings.niceness)
        case "simulated":
            from services.executor.simulated.engine import SimulatedEngine

            return SimulatedEngine(clock)
        case "triton":
            from services.executor.triton.engine import TritonEngine

            return TritonEngine(settings.cache_dir, clock)
        case "remote":
            from services.executor.remote.engine import RemoteEngine

            return RemoteEngine(settings.cache_dir, clock, observer)
        case "trtllm":
            from services.executor.trtllm.engine import TrtLlmEngine

            return TrtLlmEngine(settings.cache_dir, clock, settings.trtllm_python or sys.executable)
        case "vllm":
            from services.executor.vllm.engine import VllmEngine

            return VllmEngine(settings.cache_dir, clock, settings.vllm_python or sys.executable)
        case other:
            raise SettingsInvalid(f"HEADRACE_ENGINE={other!r} is not an engine: {', '.join(ENGINES)}")
