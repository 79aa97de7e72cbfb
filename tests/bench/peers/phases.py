"""What is measured. Prompts have about 100 words, of which the first 50 are the same in all; none is like another."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phase:
    """One kind of load."""

    name: str
    title: str
    flight: int
    """Requests at once (closed loop)."""
    tokens: int
    step_us: int
    """Of the engine; 0: as fast as it can, so the system is saturated."""
    warm_s: float
    window_s: float = 4.0
    quick_ack: bool = False
    """The client acknowledges at once; only measured where it makes a difference."""
    half_of: str = ""
    """Open loop instead, arrivals by chance, at half of the requests per second of that phase in the same round."""

    @property
    def offered(self) -> float:
        """Tokens per second that paced engines give; 0 where they are not paced."""
        return self.flight * 1e6 / self.step_us if self.step_us else 0.0


PHASES = {
    phase.name: phase
    for phase in (
        Phase("first", "one request at a time, engine without delay", 1, 8, 0, 0.5, 3.0),
        Phase("first_quick", "the same, a client that acknowledges at once", 1, 8, 0, 0.5, 3.0, quick_ack=True),
        Phase("short64", "saturated: 64 in flight, 8 tokens each", 64, 8, 0, 1.0),
        Phase("short64_quick", "the same, a client that acknowledges at once", 64, 8, 0, 1.0, quick_ack=True),
        Phase("half", "open loop at half of the saturated rate, 8 tokens each", 1024, 8, 0, 1.0, half_of="short64"),
        Phase("flood64", "saturated: 64 in flight, 128 tokens each", 64, 128, 0, 1.5),
        Phase("paced256", "256 in flight, 128 tokens each, steps of 20 ms", 256, 128, 20_000, 3.5),
        Phase("paced64", "64 in flight, 128 tokens each, steps of 20 ms", 64, 128, 20_000, 3.0),
    )
}
"""Those without delay first: some engines must be started anew for another pace."""

WORDS = (
    "time", "river", "house", "light", "quick", "model", "stone", "green",
    "paper", "cloud", "north", "water", "table", "music", "seven", "glass",
)  # fmt: skip
MARK = "XXXXXXXX"
"""The load generators write a number of eight characters here, another one in each request."""


def prompt() -> tuple[str, str]:
    """System and user message."""
    words = [WORDS[(number * number + 3 * number) % 17 % len(WORDS)] for number in range(100)]
    return " ".join(words[:50]), f"Request {MARK}: {' '.join(words[50:])}"
