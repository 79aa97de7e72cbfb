"""The router as a stage: decides which model answers each work, and where; queues nothing."""

from collections.abc import Callable, Sequence

from libs.clock import Clock
from libs.lane.forwarder import Forwarder
from libs.lane.stage import BreakerState, Sink
from libs.lane.work import Decision, QueueState, Work
from libs.telemetry.tracing import Tracing
from services.router.breaker import Breakers
from services.router.cascade import judge as judge_text
from services.router.context import Context, Intents, NoIntents, NoTexts, Texts
from services.router.doubt import Judge
from services.router.explain import decisions, planned
from services.router.fallback import Try
from services.router.lanes import RouterLane
from services.router.observe import Observer
from services.router.route import Catalogue


class Router:
    """A Stage in front of the batchers.

    Args:
        forwarder: Its way to the batchers, and what makes works survive them.
        catalogue: Gives what is known now.
        instance: This process's name.
        intents: Says what requests are about.
        texts: Makes text of the tokens of cascades.
        judge: Says what is wrong with such a text.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        catalogue: Callable[[], Catalogue],
        tracing: Tracing,
        observer: Observer,
        clock: Clock,
        *,
        instance: str = "router",
        intents: Intents | None = None,
        texts: Texts | None = None,
        judge: Judge = judge_text,
    ) -> None:
        self._context = Context(
            forwarder,
            catalogue,
            tracing,
            observer,
            clock,
            Breakers(instance),
            intents or NoIntents(),
            texts or NoTexts(),
            judge,
        )
        self._seen = Catalogue()

    @property
    def draining(self) -> bool:
        """Whether works that have not begun are handed back."""
        return self._context.draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._context.draining = draining

    @property
    def hurries(self) -> bool:
        """Whether `tick` is to come a hundred times a second, rather than a few times."""
        return bool(self._context.ringing or self._context.parked)

    def when_stirred(self, stirred: Callable[[], None]) -> None:
        """Has `stirred` called when there is something new to hurry for."""
        self._context.stirred = stirred

    @property
    def parked(self) -> int:
        """Works that wait for a model to come back, and that the forwarder does not know."""
        return len(self._context.parked)

    def open(self, sink: Sink) -> RouterLane:
        """A lane that is ready at once."""
        return RouterLane(self._context, sink)

    def tick(self) -> None:
        """Sends copies that are due, and looks after works that wait. To be called several times a second, and a
        hundred times while it `hurries`."""
        context = self._context
        now = context.clock.monotonic()
        self._learn(now)
        for alarm in context.alarms.passed(now):
            alarm.stop()
            alarm.ring()
        for journey in list(context.parked):
            if journey in context.parked:  # else it was ended by whoever heard of one before it
                journey.look(now)

    def observe(self) -> None:
        """Shows where the breakers stand. To be called once a second."""
        context = self._context
        context.observer.positions(context.breakers.positions(context.clock.monotonic()), len(context.parked))
        context.alarms.prune()

    async def explain(self, work: Work) -> Sequence[Decision]:
        """The rule, the models that it passes over, the route, and what the batcher says."""
        context = self._context
        if context.draining:
            return [Decision("router", "refuse", "this router is draining")]
        plan = await planned(work, context)
        said, chosen = decisions(work, plan, context)
        if chosen is None:
            names = [step.model for step in plan.steps if isinstance(step, Try)]
            return [*said, *self._placement(names[0] if plan.route is not None and names else work.model)]
        behind = await context.forwarder.explain(chosen.going())
        return [*said, *self._placement(chosen.route.model), *behind]

    async def queues(self) -> Sequence[QueueState]:
        """A router holds no queue."""
        return []

    async def breakers(self) -> Sequence[BreakerState]:
        """Those that have seen works lately."""
        return self._context.breakers.states(self._context.clock.monotonic())

    def _placement(self, name: str) -> Sequence[Decision]:
        """What placement said of a model, last."""
        catalogue = self._context.catalogue()
        spec = catalogue.models.get(catalogue.aliases.get(name, name))
        if spec is None:
            return []
        base = spec.base or spec.name
        said = [Decision("placement", "place", where) for where in catalogue.placed.get(base, ())]
        if (why := catalogue.unplaced.get(base)) is not None:
            said.append(Decision("placement", "not placed", why))
        return said

    def _learn(self, now: float) -> None:
        """Follows the catalogue: what has come back, and what is gone."""
        known, before = self._context.catalogue(), self._seen
        if known is before:
            return
        self._seen = known
        breakers = self._context.breakers
        for pool, state in known.pools.items():
            if state.ready and (pool not in before.pools or not before.pools[pool].ready):
                breakers.came_back(pool)
        breakers.forget(known.pools, now)
        for alias in self._context.hedges.keys() - known.routes.keys():
            del self._context.hedges[alias]
