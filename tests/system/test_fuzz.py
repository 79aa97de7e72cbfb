"""A short run of the fuzzer; `python -m tests.system.fuzz` is the long one."""

from random import Random

from google.protobuf import message_factory

from tests.system.fuzz import run
from tests.system.fuzz_messages import mutate
from tests.system.fuzz_shots import METHODS, shot

SHOTS, SEED = 2_000, 20


async def test_no_request_breaks_the_mesh() -> None:
    tally = await run(SHOTS, SEED)
    assert tally.shots == SHOTS
    assert {method.name for method in METHODS} <= set(tally.by_method)
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED"} <= set(tally.codes)


def test_a_shot_is_a_function_of_its_seed_and_number() -> None:
    assert [shot(7, number, "key") for number in range(200)] == [shot(7, number, "key") for number in range(200)]
    assert shot(7, 1, "key") != shot(8, 1, "key")


def test_every_field_of_every_request_is_mutated() -> None:
    for method in METHODS:
        chance, touched = Random(1), set[str]()
        for number in range(3_000):
            message = message_factory.GetMessageClass(method.input_type)()
            mutate(message, chance)
            touched |= {field.name for field, _ in message.ListFields()}
            if number % 100 == 0 and touched == set(method.input_type.fields_by_name):
                break
        assert touched == set(method.input_type.fields_by_name), method.name
