"""The engines that an executor can have. Imports only the one that is asked for."""

from libs.clock import Clock
from libs.settings import SettingsInvalid
from services.executor.config import Settings
from services.executor.engine import Engine


def make_engine(settings: Settings, clock: Clock) -> Engine:
    """Makes the engine that the settings name. Raises SettingsInvalid for a name that is none."""
    match settings.engine:
        case "openvino":
            from services.executor.openvino.engine import OpenVinoEngine

            return OpenVinoEngine(settings.cache_dir, settings.threads, settings.niceness)
        case "simulated":
            from services.executor.simulated.engine import SimulatedEngine

            return SimulatedEngine(clock)
        case other:
            raise SettingsInvalid(f"HEADRACE_ENGINE={other!r} is not an engine: openvino, simulated")
