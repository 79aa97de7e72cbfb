"""How the console says states, sizes and times. Pure."""

from rich.text import Text

from headrace.registry.v1 import registry_pb2

STATES = {
    registry_pb2.MODEL_STATE_PENDING: ("○", "bright_black"),
    registry_pb2.MODEL_STATE_LOADING: ("◌", "cyan"),
    registry_pb2.MODEL_STATE_READY: ("●", "green"),
    registry_pb2.MODEL_STATE_DRAINING: ("◐", "yellow"),
    registry_pb2.MODEL_STATE_FAILED: ("✗", "red"),
}
"""Mark and color of each state of a copy."""


def word(state: registry_pb2.ModelState.ValueType) -> str:
    """READY, LOADING…"""
    return registry_pb2.ModelState.Name(state).removeprefix("MODEL_STATE_")


def shown(state: registry_pb2.ModelState.ValueType) -> Text:
    """The state with its mark, in its color."""
    mark, color = STATES.get(state, ("?", "bright_black"))
    return Text(f"{mark} {word(state)}", style=color, no_wrap=True)


def age(seconds: float) -> str:
    """In the largest unit that says something: 42 s, 7 min, 3 h, 5 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def size(count: int) -> str:
    """In GB with one digit, or MB: "0.7 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} B"
