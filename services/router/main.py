"""The router's process."""

from libs import process
from libs.lane.forwarder import Forwarder
from libs.lane.neighbours import Neighbours
from libs.models.tokenizers import Tokenizers, load_tokenizer
from libs.process import TICK_S, MeshProcess
from libs.runtime import Runtime
from services.router.answer_texts import AnswerTexts
from services.router.catalogue_source import CatalogueSource
from services.router.config import Settings
from services.router.intents.intents import Intents
from services.router.observe import Observer
from services.router.route import Catalogue, batcher_for
from services.router.stage import Router

HEDGE_TICK_S = 0.01
"""How exactly a slow request is told from others, in seconds."""


async def run(settings: Settings, runtime: Runtime) -> None:
    """Wires a router and runs it until it is told to stop."""
    async with MeshProcess("router", settings.process, runtime) as mesh:
        observer = Observer(mesh.metrics)
        forwarder = Forwarder("router", batcher_for, mesh.clock, lambda work: observer.resumed(work.pool))
        tokenizers = Tokenizers(load_tokenizer, settings.cache_dir, mesh.tasks)
        texts = AnswerTexts(tokenizers)
        intents = Intents(settings.intents or settings.process.state_dir / "intents.npz", observer.intent)

        def catalogue_changed(known: Catalogue) -> None:
            texts.want(known)
            intents.want(known)

        source = CatalogueSource(mesh.registry, mesh.clock, catalogue_changed)
        router = Router(
            forwarder,
            lambda: source.catalogue,
            mesh.tracing,
            observer,
            mesh.clock,
            instance=mesh.instance,
            texts=texts,
            intents=intents,
        )
        batchers = Neighbours(mesh.registry, "batcher", mesh.stages, forwarder.set_neighbours)

        mesh.owns(intents.close)
        mesh.owns(source.close)
        await source.start()
        await tokenizers.loaded()
        mesh.owns(batchers.close)
        await batchers.start()

        def tick() -> None:
            forwarder.expire()
            router.tick()

        stirred = mesh.while_busy(TICK_S, tick, lambda: bool(forwarder.in_flight or router.parked), "tick")
        router.when_stirred(mesh.while_busy(HEDGE_TICK_S, router.tick, lambda: router.hurries, "hedges"))
        mesh.every(1.0, router.observe, "show breakers")
        mesh.every(1.0, intents.look, "look for intents")
        mesh.every(1.0, lambda: observer.lanes(len(forwarder.ready_neighbours())), "count lanes")
        # Only now: a router that has not read the catalogue would know no model.
        await mesh.listen_as_stage(router, stirred)
        await mesh.announce_stage()

        def begin_drain() -> None:
            router.draining = True

        await mesh.serve(begin_drain, lambda: forwarder.in_flight + router.parked)
        forwarder.close()


def main() -> None:
    """Entry point."""
    process.main("router", Settings, run)


if __name__ == "__main__":
    main()
