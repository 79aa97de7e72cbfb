"""`headrace models`."""

import asyncio
import json

from google.protobuf import json_format
from rich.console import Console

from headrace.operations.v1 import operations_pb2 as pb
from headrace.registry.v1 import registry_pb2
from libs.client.errors import HeadraceError
from services.console import models_view
from services.console.operations import Operations, told


def models(target: str, key: str, as_json: bool, console: Console) -> None:
    """Shows the catalogue and how far each model is. Raises Problem."""
    try:
        catalogue, statuses = asyncio.run(_ask(target, key))
    except HeadraceError as error:
        raise told(error, target) from error
    if as_json:
        found = [
            {"model": _json(model), "status": _json(status)} for model, status in zip(catalogue, statuses, strict=True)
        ]
        console.print_json(json.dumps(found))
    elif catalogue:
        console.print(models_view.models(catalogue, statuses, console.width))
    else:
        console.print("the catalogue is empty; `headrace apply -f FILE` fills it")


async def _ask(target: str, key: str) -> tuple[list[registry_pb2.Model], list[pb.ModelStatus]]:
    async with Operations(target, key) as operations:
        return await operations.models()


def _json(message: registry_pb2.Model | pb.ModelStatus) -> object:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)
