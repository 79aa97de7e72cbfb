"""Admission's process."""

from headrace.inference.v1 import inference_pb2_grpc
from headrace.operations.v1 import operations_pb2_grpc
from headrace.registry.v1 import registry_pb2
from libs import process
from libs.lane.forwarder import Forwarder
from libs.lane.neighbours import HOLD_S, Neighbours
from libs.models.tokenizers import Tokenizers, load_tokenizer
from libs.process import TICK_S, MeshProcess
from libs.registry import keys
from libs.rpc.call import Call
from libs.rpc.interceptors import deadline, errors, identity, telemetry
from libs.rpc.server import Service
from libs.runtime import Runtime
from libs.telemetry import names
from services.admission.audit import Audit
from services.admission.audit.layer import audited
from services.admission.catalogue_writer import CatalogueWriter
from services.admission.config import Settings
from services.admission.contracts.start import Contracts
from services.admission.desks import Desks
from services.admission.front import Front
from services.admission.identity import Identity
from services.admission.ladder import Ladders
from services.admission.leaving import leave
from services.admission.limits.exchange import EVERY_S, LimitsExchange
from services.admission.limits.limits import Limits
from services.admission.observe import Observer
from services.admission.operations import OperationsServicer, Writers
from services.admission.pin_writer import PinWriter
from services.admission.placement_view import PlacementView
from services.admission.policy import Policy, Tenant
from services.admission.policy_source import PolicySource
from services.admission.policy_writer import PolicyWriter
from services.admission.router_choice import RouterChoice
from services.admission.saturation_source import LOOK_S, SaturationSource
from services.admission.service import InferenceServicer
from services.admission.stages import Stages

TRACED = frozenset({f"/{names.GENERATE}"})
"""A session's requests have spans of their own."""


async def run(settings: Settings, runtime: Runtime) -> None:
    """Wires admission and runs it until it is told to stop."""
    async with MeshProcess("admission", settings.process, runtime) as mesh:
        observer = Observer(mesh.metrics)
        forwarder = Forwarder("admission", RouterChoice(settings.process.instance), mesh.clock)
        tokenizers = Tokenizers(load_tokenizer, settings.cache_dir, mesh.tasks)

        def policy_changed(policy: Policy) -> None:
            tokenizers.want(policy.models)

        source = PolicySource(mesh.registry, policy_changed)

        def policy() -> Policy:
            return source.policy

        instance = settings.process.instance
        limits = Limits(instance)
        exchange = LimitsExchange(mesh.registry, instance, limits, mesh.clock)
        ladders = Ladders(policy)
        contracts = Contracts(policy, mesh.registry, mesh.clock, mesh.tracing, mesh.metrics)
        folder = settings.process.state_dir / "audit" / instance
        audit = Audit(folder, instance, source.audit_days, observer.audit_lost, mesh.clock)
        desks = Desks(policy, limits, ladders, contracts, audit, tokenizers, observer)
        front = Front(forwarder, desks, mesh.clock, mesh.tasks)
        routers = Neighbours(mesh.registry, "router", mesh.stages, forwarder.set_neighbours)
        services = mesh.registry.mirror(keys.SERVICES, registry_pb2.ServiceInstance, hold_deletions_s=HOLD_S)
        placements = mesh.registry.mirror(keys.PLACEMENTS, registry_pb2.Placement)
        unplaced = mesh.registry.mirror(keys.UNPLACED, registry_pb2.Unplaced)
        demand = mesh.registry.mirror(keys.DEMAND, registry_pb2.Demand)

        saturation = SaturationSource(demand, ladders, mesh.clock)
        known = Identity(settings.trust_client_certificates)

        def who(call: Call) -> Tenant:
            return known.authenticate(call.metadata, source.policy, mesh.clock.now(), call.peer)

        inference = InferenceServicer(front, source, mesh.tracing, observer, contracts.approvals)
        view = PlacementView(source.models, source.executors, placements, unplaced, demand)
        writer = CatalogueWriter(mesh.registry, mesh.clock)
        pins = PinWriter(mesh.registry, source.models_of_aliases, tokenizers.get)
        writers = Writers(writer, pins, PolicyWriter(mesh.registry, mesh.clock))
        stages = Stages(services, mesh.channels.connect)
        operations = OperationsServicer(
            front,
            source,
            mesh.registry,
            services,
            view,
            writers,
            stages,
            desks,
            mesh.channels.connect,
            mesh.clock,
            instance,
        )
        mesh.owns(source.close)
        await source.start()
        audit.start()
        mesh.owns(audit.close)
        mesh.owns(routers.close)
        await routers.start()
        mesh.owns(exchange.close)
        await exchange.start()
        mesh.owns(contracts.close)
        await contracts.open()
        async with services, placements, unplaced, demand:
            await tokenizers.loaded()
            mesh.while_busy(TICK_S, forwarder.expire, lambda: bool(forwarder.in_flight), "expire")
            mesh.every(EVERY_S, exchange.tick, "limits")
            mesh.every(LOOK_S, saturation.tick, "ladders")
            mesh.every(1.0, lambda: observer.degraded(ladders.states()), "tell levels")
            demand.on_change(saturation.tick)
            # Only now: a process that does not know its tenants yet would refuse them all.
            await mesh.listen(
                [
                    Service(
                        "headrace.inference.v1.InferenceService",
                        inference_pb2_grpc.add_InferenceServiceServicer_to_server,
                        inference,
                    ),
                    Service(
                        "headrace.operations.v1.OperationsService",
                        operations_pb2_grpc.add_OperationsServiceServicer_to_server,
                        operations,
                    ),
                ],
                [
                    telemetry(mesh.tracing, TRACED),
                    errors,
                    deadline(mesh.clock),
                    identity(who),
                    audited(audit, mesh.clock),
                ],
            )
            await mesh.announce_stage()

            await mesh.told_to_end()
            await leave(front, inference, mesh.retire, settings.notice_s, settings.process.drain_s)
            forwarder.close()


def main() -> None:
    """Entry point."""
    process.main("admission", Settings, run)


if __name__ == "__main__":
    main()
