"""What a tier gives up while a model is saturated: its degradation ladder. Pure.

Saturation comes from the batchers and is the largest of

    wait                         as it is: 1 is where a promise breaks;
    refused / (1 - refused)      as many refused as let in is 1, four times as many is 4. It has no upper end, so rungs
                                 beyond 1 can tell a little too much from far too much, where waits cannot: batchers
                                 refuse what would wait longer;
    min(blocks, 2 * wait)        a KV cache that is full while nobody waits is one that is well used, so blocks alone
                                 are no saturation. Where works do wait, no room comes before an answer ends, and so
                                 the same wait weighs up to twice as much.

A level rises at once, over several rungs if need be. It falls a rung at a time, each when saturation has stayed below
that rung's `at` for `recover_s`: what a rung relieves comes back when it is left, and must not bring it back at once.
(The same asymmetry as in TCP's congestion control, Jacobson 1988: give way fast, take back slowly.)

Behind a rung that defers, a tier's requests wait as async ones, and its own saturation says nothing of them. So rungs
behind that one are also reached by the saturation of the async tier, from when its own saturation reached the deferring
rung until the level falls: then it is for its own saturation again to say how much is asked for. They are held by its
own saturation alone, since a flood of async work is no reason to keep interactive requests out.

Protected tenants give up nothing before the last rung is reached; then all rungs but the last; and the last one too
when it has been in force for `recover_s`, since then what the others gave up was not enough.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isnan

from libs.lane.work import Tier
from services.admission.policy import Policy, Rung, TierPolicy

MOST = 1e6
"""Saturation is at most this."""
LEAST_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Saturated:
    """What one batcher says of one model and tier; figures: registry.Saturation."""

    model: str
    """A base model."""
    tier: Tier
    wait: float = 0.0
    blocks: float = 0.0
    refused: float = 0.0

    @property
    def saturation(self) -> float:
        """See the module; from 0 to MOST."""
        refused = min(max(_figure(self.refused), 0.0), 1.0)
        asked = refused / (1 - refused) if refused < 1 else MOST
        return min(max(_figure(self.wait), min(_figure(self.blocks), 2 * _figure(self.wait)), asked, 0.0), MOST)


@dataclass(frozen=True, slots=True)
class Effects:
    """What one request has to give up."""

    level: int = 0
    rungs: Sequence[str] = ()
    """Names of the rungs in force for it; `level` is their number."""
    clamp_output_tokens: int = 0
    """The longest answer; 0 means no limit of its own."""
    smaller_model: bool = False
    tools_off: bool = False
    no_extras: bool = False
    defer: bool = False
    reject: bool = False
    reason: str = ""
    """For a person; empty when nothing is given up."""
    retry_after_s: float = 0.0
    """When it is worth to come back; set with `reject`."""


@dataclass(frozen=True, slots=True)
class LadderState:
    """Where one ladder stands."""

    model: str
    tier: Tier
    level: int
    rungs: Sequence[str]
    seen: Saturated
    since: float
    """When the level changed last, by the clock of `observe`."""


NONE = Effects()


@dataclass(slots=True)
class _Ladder:
    """One model's, for one tier."""

    seen: Saturated
    since: float
    level: int = 0
    below_since: float = inf
    """Since when saturation has been below the `at` of the rung that is reached; infinite while it is not."""
    deferring: bool = False
    """Whether the async tier's saturation counts behind a deferring rung."""
    all: Effects = NONE
    """Of all rungs in force."""
    spared: Effects = NONE
    """Of these without the last one of the ladder."""
    last_due: float = inf
    """When the last rung counts for protected tenants too."""

    def follow(self, rules: TierPolicy, seen: Saturated, later: Saturated, now: float) -> None:
        """Takes in what is seen now, of its tier and of the one that its requests are deferred to."""
        self.seen = seen
        rungs = rules.ladder
        before, self.level = self.level, min(self.level, len(rungs))
        reached = _reached(rungs, seen.saturation)
        if reached >= self.level:
            self.level, self.below_since = reached, inf
        elif self.below_since == inf:
            self.below_since = now
        elif now >= self.below_since + rules.recover_s:
            self.level, self.below_since, self.deferring = self.level - 1, now, False
            if reached >= self.level:
                self.below_since = inf
        defers = next((number for number, rung in enumerate(rungs, 1) if rung.defer), inf)
        self.deferring = self.deferring or reached >= defers
        if self.deferring and (behind := _reached(rungs, later.saturation)) > self.level:
            self.level, self.below_since = behind, inf
        if self.level != before:
            self.since = now
        last = 0 < len(rungs) == self.level
        self.last_due = min(self.last_due, now + rules.recover_s) if last else inf
        left_at = rules.recover_s if self.below_since == inf else self.below_since + rules.recover_s - now
        self.all = _effects(rungs[: self.level], seen, left_at)
        self.spared = _effects(rungs[: self.level - 1], seen, left_at) if last else NONE


@dataclass(slots=True)
class Ladders:
    """The ladders of one admission process. Bounded by the models of the policy, times the tiers.

    All processes see the same saturations and have the same rules, so they stand on the same rungs, up to the time that
    news take. `effects` is a look into two tables; the rest is done when saturation is observed.

    Args:
        policy: Gives the rules that hold now.
    """

    policy: Callable[[], Policy]
    _ladders: dict[tuple[str, Tier], _Ladder] = field(default_factory=dict)

    def observe(self, saturations: Iterable[Saturated], now: float) -> None:
        """Takes in what all batchers say now. To be called when that changes and several times a second: levels fall
        by this alone.

        Args:
            saturations: Of several of a model and tier, the largest of each figure counts. What is not mentioned is
                not saturated; models that the policy does not know are left out.
            now: Monotonic seconds, which do not go back.
        """
        policy = self.policy()
        worst: dict[tuple[str, Tier], Saturated] = {}
        for each in saturations:
            if each.model in policy.models:
                worst[each.model, each.tier] = _worse(worst.get((each.model, each.tier)), each)
        gone = [key for key, ladder in self._ladders.items() if key not in worst and not ladder.level]
        gone += [key for key in self._ladders if key[0] not in policy.models]
        for key in gone:
            self._ladders.pop(key, None)
        for model, tier in {**worst, **self._ladders}:
            seen = worst.get((model, tier)) or Saturated(model, tier)
            ladder = self._ladders.setdefault((model, tier), _Ladder(seen, now))
            later = worst.get((model, Tier.ASYNC)) or Saturated(model, Tier.ASYNC)
            ladder.follow(_rules(policy.tiers, tier), seen, later, now)

    def effects(self, model: str, tier: Tier, protected: bool, now: float) -> Effects:
        """What a request has to give up. Changes nothing.

        Args:
            model: The model that it asks for; an adapter stands on the ladder of its base.
            protected: Whether its tenant is.
        """
        spec = self.policy().models.get(model)
        ladder = self._ladders.get((spec.base or spec.name, tier)) if spec is not None else None
        if ladder is None:
            return NONE
        return ladder.spared if protected and now < ladder.last_due else ladder.all

    def states(self) -> Sequence[LadderState]:
        """Of tiers that have a ladder and models that are asked for: by model, then tier."""
        tiers = self.policy().tiers
        states = []
        for (model, tier), ladder in sorted(self._ladders.items()):
            if rungs := _rules(tiers, tier).ladder:
                names = [rung.name for rung in rungs[: ladder.level]]
                states.append(LadderState(model, tier, ladder.level, names, ladder.seen, ladder.since))
        return states


def _reached(rungs: Sequence[Rung], saturation: float) -> int:
    """The number of the last rung that is reached; 0 for none."""
    return max((number for number, rung in enumerate(rungs, 1) if saturation >= rung.at), default=0)


def _effects(rungs: Sequence[Rung], seen: Saturated, left_at: float) -> Effects:
    """Of rungs that are in force together."""
    if not rungs:
        return NONE
    clamps = [rung.clamp_output_tokens for rung in rungs if rung.clamp_output_tokens]
    reject = any(rung.reject for rung in rungs)
    names = [rung.name for rung in rungs]
    return Effects(
        level=len(rungs),
        rungs=names,
        clamp_output_tokens=min(clamps, default=0),
        smaller_model=any(rung.smaller_model for rung in rungs),
        tools_off=any(rung.tools_off for rung in rungs),
        no_extras=any(rung.no_extras for rung in rungs),
        defer=any(rung.defer for rung in rungs),
        reject=reject,
        reason=(
            f"{seen.model} has a saturation of {seen.saturation:.2f} for {seen.tier.name.lower()} requests (waits "
            f"{seen.wait:.0%} of what is promised, blocks {seen.blocks:.0%} reserved, {seen.refused:.0%} refused): "
            f"in force are {', '.join(names)}"
        ),
        retry_after_s=max(left_at, LEAST_RETRY_S) if reject else 0.0,
    )


def _worse(one: Saturated | None, other: Saturated) -> Saturated:
    if one is None:
        return other
    figures = (max(_figure(a), _figure(b)) for a, b in (
        (one.wait, other.wait), (one.blocks, other.blocks), (one.refused, other.refused)
    ))  # fmt: skip
    return Saturated(one.model, one.tier, *figures)


def _rules(tiers: Mapping[Tier, TierPolicy], tier: Tier) -> TierPolicy:
    return tiers.get(tier) or TierPolicy()


def _figure(value: float) -> float:
    """What is no number counts as nothing."""
    return 0.0 if isnan(value) else value
