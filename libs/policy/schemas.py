"""JSON schemas that operators write. No effects."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema

from libs.catalogue.rules import Fault

MOST_CHARACTERS = 64 * 1024
"""As of a request's own schema."""


def faults(text: str, path: str, *, of_object: bool = False) -> Iterator[Fault]:
    """What keeps a text from being a schema by draft 2020-12.

    Args:
        of_object: Whether it has to describe an object, as the arguments of a tool are.
    """
    if len(text) > MOST_CHARACTERS:
        yield Fault(path, f"{len(text)} characters: at most {MOST_CHARACTERS}")
        return
    try:
        schema = json.loads(text)
        jsonschema.Draft202012Validator.check_schema(schema)
        elsewhere = next(_elsewhere(schema), None)
    except ValueError as error:
        yield Fault(path, f"not JSON: {error}")
    except jsonschema.SchemaError as error:
        where = "/".join(str(part) for part in error.absolute_path)
        yield Fault(path, f"not a JSON schema: at '/{where}': {error.message[:200]}")
    except RecursionError:
        yield Fault(path, "nested too deeply")
    else:
        if elsewhere is not None:
            yield Fault(path, f"{elsewhere[:80]!r} lies elsewhere: references lead to '#…' within the schema")
        if of_object and not (isinstance(schema, dict) and schema.get("type") == "object"):
            yield Fault(path, 'the arguments of a tool are an object: {"type": "object", …}')


def _elsewhere(schema: Any) -> Iterator[str]:
    """References that lead out of the schema: nothing is fetched for them."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
                yield value
            yield from _elsewhere(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _elsewhere(item)
