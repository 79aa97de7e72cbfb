"""The end of a turn of the event loop."""

import asyncio
from typing import Any

from libs import tick
from libs.tick import MOST, SAY, SEND, TELL


async def test_what_is_done_is_done_in_order_of_rank_and_all_in_one_turn() -> None:
    end, done, turns = tick.of_loop(), list[str](), 0

    def count() -> None:
        nonlocal turns
        turns += 1
        if turns < 10:
            asyncio.get_running_loop().call_soon(count)

    def told() -> None:
        done.append("told")
        end.add(SEND, lambda: done.append("sent after all"))
        end.add(SAY, said)

    def said() -> None:
        done.append("said")
        if done.count("told") < 2:
            end.add(TELL, told)

    end.add(SEND, lambda: done.append("sent"))
    end.add(SAY, said)
    end.add(TELL, told)
    assert not done
    count()
    await asyncio.sleep(0)
    assert done == ["told", "said", "told", "said", "said", "sent", "sent after all", "sent after all"]
    assert turns <= 2


async def test_one_that_fails_is_reported_and_does_not_keep_the_others() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    end, done = tick.of_loop(), list[int]()
    for number in range(3):
        end.add(number % 2, lambda number=number: done.append(1 // number))  # type: ignore[misc]
    await asyncio.sleep(0)
    assert done == [0, 1]
    assert [type(context["exception"]) for context in reported] == [ZeroDivisionError]
    end.add(TELL, lambda: done.append(9))
    await asyncio.sleep(0)
    assert done == [0, 1, 9]


async def test_who_never_stops_leaves_others_their_turns() -> None:
    end, times, other = tick.of_loop(), 0, asyncio.Event()

    def again() -> None:
        nonlocal times
        times += 1
        if not other.is_set():
            end.add(TELL, again)

    again()
    asyncio.get_running_loop().call_later(0.001, other.set)
    async with asyncio.timeout(5):
        await other.wait()
    assert times > MOST


def test_each_loop_has_its_own() -> None:
    async def one() -> tick.Tick:
        assert tick.of_loop() is tick.of_loop()
        return tick.of_loop()

    assert asyncio.run(one()) is not asyncio.run(one())
