"""Names for requests that bring none."""

import re

from services.admission.request_ids import AT_ONCE, RequestIds


def test_ids_are_32_digits_and_none_comes_twice() -> None:
    ids = RequestIds()
    made = [ids.next() for _ in range(2 * AT_ONCE + 1)]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)
