"""Pages of a list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import RequestInvalid
from libs.rpc.paging import DEFAULT, LARGEST, page


@given(count=st.integers(0, 2500), size=st.integers(0, 3000))
def test_the_pages_joined_are_the_list(count: int, size: int) -> None:
    items, token, seen = list(range(count)), "", list[int]()
    for _ in range(count + 1):
        part, token = page(items, size, token)
        assert len(part) <= min(size or DEFAULT, LARGEST)
        seen += part
        if not token:
            break
    assert seen == items


def test_a_list_that_shrank_ends() -> None:
    assert page([1, 2], 0, "100") == ([], "")


@pytest.mark.parametrize("token", ["x", "-1", "1.5", "9" * 5000, " 1"])
def test_a_made_up_token_is_refused(token: str) -> None:
    with pytest.raises(RequestInvalid) as raised:
        page([1], -1, token)
    assert [v.subject for v in raised.value.violations] == ["page_size", "page_token"]
