"""Which fault comes when: a function of the seed, and of nothing else.

A run is a row of rounds. Faults of one round may overlap, but of every service there is always one process that no
fault has touched for a while, unless the kind of the fault is about losing all of them: so it is known what a fault
does to requests (`Kind.allows`). In every second round all admissions live: their counts can be held to the token.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from services.console.mesh.plan import DOORS

RECOVERY_S = 5.0
"""After a fault its targets are left alone for as long: processes start, lanes come back, leases are renewed."""
MOST_AT_ONCE = 3
ROUND_S = 60.0
"""Faults of a round begin for as long; then come their end, and a rest."""
EVERY_S = 1.6
SHORT_MINUTES, SHORT_EVERY_S = 0.4, 2.2
"""The short run of CI."""
FIRST_S = 0.5
"""The first fault of a round comes about then: load must run."""
ETCD = "etcd"
"""The cluster as a target: members are chosen when the fault comes, as only then it is known who leads."""
CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Cast:
    """The processes of a mesh.

    Args:
        counts: Of each service, at least two: {"router": 2} are router-1 and router-2.
        talk: Who connects to whom, the registry left out.
        short_seed: Of the short run: a seed whose few faults are of many kinds.
    """

    counts: Mapping[str, int]
    talk: Sequence[tuple[str, str]]
    short_seed: int

    @property
    def pairs(self) -> Sequence[tuple[str, str]]:
        """Services that talk, all with the registry."""
        return (*self.talk, *((service, ETCD) for service in self.counts))


APART = Cast(
    {"admission": 2, "router": 2, "batcher": 2, "kvcache": 2, "executor": 3, "placement": 2},
    (
        (CLIENT, "admission"), ("admission", "router"), ("router", "batcher"), ("batcher", "executor"),
        ("batcher", "kvcache"), ("executor", "kvcache"),
    ),
    short_seed=4308,
)  # fmt: skip
MONOLITHS = Cast(
    {"monolith": 2, "executor": 3, "placement": 2},
    ((CLIENT, "monolith"), ("monolith", "monolith"), ("monolith", "executor"), ("executor", "monolith")),
    short_seed=17364,
)
CASTS = {"apart": APART, "monoliths": MONOLITHS}
UNAVAILABLE = frozenset({"STAGE_UNAVAILABLE", "NO_EXECUTOR", "UNAVAILABLE"})
"""The last is gRPC's own code, without a reason of the mesh: nobody answered at all."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault.

    Args:
        shape: What its targets are: "process", "pair" (two that talk), "twins" (all processes of one service),
            "two" (processes of two services), "etcd" or "clients".
        weight: How often it is drawn, in proportion.
        lasts_s: The shortest and the longest time until what was broken is mended.
        amount: Bounds of the fault's size: seconds of delay or of a jump, clients. (0, 0) where it has none.
        allows: Reasons of errors that clients may see because of it, after all that the SDK tries.
        wires: Whether it needs a network of its own.
        ends: Whether its targets are other processes afterwards.
    """

    shape: str
    weight: float
    lasts_s: tuple[float, float]
    amount: tuple[float, float] = (0.0, 0.0)
    allows: frozenset[str] = frozenset()
    wires: bool = False
    ends: bool = False


LONG_S = 10.0
"""A neighbor that says nothing for so long is given up (libs/rpc/channels.py): its works go elsewhere, and when it
wakes up it still has them."""
KINDS: Mapping[str, Kind] = {
    "kill": Kind("process", 10, (0.2, 2.0), ends=True),
    "kill two": Kind("two", 3, (0.2, 2.0), ends=True),
    "kill as it starts": Kind("process", 3, (0.3, 3.0), ends=True),
    "kill all of a service": Kind("twins", 2, (0.2, 1.0), allows=UNAVAILABLE, ends=True),
    "drain": Kind("process", 4, (0.2, 1.0), ends=True),
    "freeze": Kind("process", 8, (1.0, 8.0)),
    "freeze for long": Kind("process", 3, (11.0, 16.0)),
    "lose power": Kind("process", 4, (0.5, 6.0), wires=True, ends=True),
    "isolate": Kind("process", 4, (1.0, 8.0), wires=True),
    "cut": Kind("pair", 6, (1.0, 8.0), wires=True),
    "cut for long": Kind("pair", 3, (11.0, 16.0), wires=True),
    "cut one way": Kind("pair", 3, (1.0, 8.0), wires=True),
    "delay": Kind("pair", 5, (2.0, 6.0), (0.02, 0.3), wires=True),
    "kill etcd's leader": Kind("etcd", 3, (0.2, 4.0)),
    "freeze etcd's leader": Kind("etcd", 3, (1.0, 6.0)),
    "kill etcd's majority": Kind("etcd", 2, (1.0, 6.0)),
    "freeze etcd's majority": Kind("etcd", 2, (1.0, 8.0)),
    "kill all of etcd": Kind("etcd", 2, (1.0, 6.0)),
    "freeze all of etcd": Kind("etcd", 2, (1.0, 8.0)),
    "fill etcd's quota": Kind("etcd", 2, (2.0, 6.0)),
    "fill a member's disk": Kind("etcd", 2, (1.0, 4.0), wires=True),
    "clients vanish": Kind("clients", 4, (0.3, 2.0), (4, 16)),
    "clients stop reading": Kind("clients", 4, (2.0, 6.0), (2, 8)),
    "a client is killed": Kind("clients", 2, (0.2, 1.0), (4, 12)),
    "a client freezes": Kind("clients", 2, (3.0, 8.0), (4, 12)),
    "a client loses power": Kind("clients", 1, (12.0, 14.0), (4, 12), wires=True),
    "the clock jumps": Kind("process", 4, (1.0, 6.0), (0.5, 8.0)),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a schedule."""

    number: int
    """From 1, over all rounds."""
    at_s: float
    """After the beginning of its round."""
    kind: str
    targets: tuple[str, ...]
    lasts_s: float
    amount: float = 0.0
    """Of the kind's unit; jumps have a sign."""

    @property
    def ends_s(self) -> float:
        """After the beginning of its round: when it is mended."""
        return self.at_s + self.lasts_s

    def __str__(self) -> str:
        who, amount = ", ".join(self.targets), f", {self.amount:.3g}" if self.amount else ""
        return f"#{self.number} at {self.at_s:.1f} s: {self.kind}: {who}{amount}, for {self.lasts_s:.1f} s"


def draw(
    seed: int,
    minutes: float,
    cast: Cast,
    *,
    every_s: float = EVERY_S,
    kinds: Collection[str] = (),
    wires: bool = True,
) -> Sequence[Sequence[Fault]]:
    """The faults of each round, in order of time.

    Args:
        minutes: How long faults begin, all rounds together. One of a minute or less has two short rounds, without the
            kinds that take long.
        cast: Whom they may befall.
        every_s: Mean time between two faults.
        kinds: Which to draw from; all of them without.
        wires: Whether the network can be cut.
    """
    rounds = max(2, round(minutes * 60 / ROUND_S))
    seconds = min(ROUND_S, minutes * 60 / rounds)
    fitting = [name for name, kind in KINDS.items() if rounds > 2 or kind.lasts_s[1] < LONG_S]
    names = [name for name in kinds or fitting if wires or not KINDS[name].wires]
    chance = random.Random(seed)
    number, drawn = 0, []
    for round_number in range(rounds):
        faults: list[Fault] = []
        at_s = FIRST_S + chance.uniform(0.0, 0.5)
        while at_s < seconds:
            fault = _one(chance, number + 1, round(at_s, 2), faults, cast, names, spares=round_number % 2 == 1)
            if fault is not None:
                number += 1
                faults.append(fault)
            at_s += chance.uniform(0.4, 1.6) * every_s
        drawn.append(faults)
    return drawn


def _one(
    chance: random.Random,
    number: int,
    at_s: float,
    before: Sequence[Fault],
    cast: Cast,
    kinds: Sequence[str],
    *,
    spares: bool,
) -> Fault | None:
    """A fault that may begin now, and spares the admissions or not; None when everything is still busy with others."""
    if sum(fault.ends_s > at_s for fault in before) >= MOST_AT_ONCE:
        return None
    for _ in range(20):
        name = chance.choices(kinds, [KINDS[each].weight for each in kinds])[0]
        kind = KINDS[name]
        targets = _targets(chance, kind, cast)
        lasts_s = round(chance.uniform(*kind.lasts_s), 2)
        amount = round(chance.uniform(*kind.amount), 3)
        if name == "the clock jumps":
            amount *= chance.choice((-1, 1))
        elif kind.shape == "clients":
            amount = float(round(amount))
        fault = Fault(number, at_s, name, targets, lasts_s, amount)
        if spares and kind.ends and any(service_of(name) in DOORS for name in targets):
            continue
        if all(apart(fault, other) for other in before):
            return fault
    return None


def _targets(chance: random.Random, kind: Kind, cast: Cast) -> tuple[str, ...]:
    def process(service: str) -> str:
        return service if service in (CLIENT, ETCD) else f"{service}-{chance.randint(1, cast.counts[service])}"

    services = tuple(cast.counts)
    match kind.shape:
        case "process":
            return (process(chance.choice(services)),)
        case "pair":
            one, other = chance.choice(cast.pairs)
            if one == other:
                return tuple(f"{one}-{number}" for number in chance.sample(range(1, cast.counts[one] + 1), 2))
            return process(one), process(other)
        case "two":
            return tuple(process(service) for service in chance.sample(services, 2))
        case "twins":
            service = chance.choice(services)
            return tuple(f"{service}-{number}" for number in range(1, cast.counts[service] + 1))
        case "etcd":
            return (ETCD,)
        case _:
            return (CLIENT,)


def apart(fault: Fault, other: Fault) -> bool:
    """Whether the second may begin while the first may still be felt: they are about different services."""
    if min(fault.ends_s, other.ends_s) + RECOVERY_S <= max(fault.at_s, other.at_s):
        return True
    if KINDS[fault.kind].shape == KINDS[other.kind].shape == "clients":
        return True
    return not {service_of(name) for name in fault.targets} & {service_of(name) for name in other.targets}


def service_of(name: str) -> str:
    """ "router-2" → "router"."""
    return name.rpartition("-")[0] or name
