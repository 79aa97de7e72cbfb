"""The ordered collections beside sorted lists."""

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from services.batcher import ordered
from services.batcher.ordered import CHUNK, SLACK, Item, LazyHeap, Row

steps = st.lists(st.tuples(st.integers(0, 20), st.none() | st.integers(0, 5)), max_size=300)


@given(steps)
def test_a_lazy_heap_is_a_sorted_dict(steps: list[tuple[int, int | None]]) -> None:
    heap: LazyHeap[int] = LazyHeap()
    model: dict[int, int] = {}
    for key, priority in steps:
        if priority is None:
            heap.discard(key)
            model.pop(key, None)
        else:
            heap.set(key, priority)
            model[key] = priority
        assert heap.top() == min(((p, k) for k, p in model.items()), default=None)
        assert len(heap) == len(model)
        assert set(heap) == set(model)
    heap.check_integrity()


def test_what_never_comes_to_the_top_is_cleared_away() -> None:
    heap: LazyHeap[int] = LazyHeap()
    heap.set(0, 0.0)
    for key in range(1, 10_000):
        heap.set(key, 1.0)
        heap.discard(key)
    assert len(heap._heap) <= 2 + SLACK + 1
    assert heap.top() == (0.0, 0)


orders = st.sampled_from([-inf, 0.0, 1.0, 2.5, 7.0])


@settings(deadline=None)
@given(st.lists(st.tuples(orders, st.integers(0, 50), st.none() | st.integers(0, 1_000)), max_size=120))
def test_a_row_is_a_sorted_list(drawn: list[tuple[float, int, int | None]]) -> None:
    row, model = Row(), list[Item]()
    for key, (order, tokens, removed) in enumerate(drawn):
        if model and removed is not None:
            gone = model[removed % len(model)]
            row.remove(gone)
            model.remove(gone)
        item = (order, (key * 37) % 1000, tokens)
        row.add(item)
        model = sorted([*model, item])
    row.check_integrity()
    assert list(row) == model
    assert row.first() == (model[0] if model else None)
    assert bool(row) == bool(model)
    for order in (-inf, 0.0, 1.5, 7.0):
        assert row.after(order) == next((item for item in model if item[0] > order), None)
        for key in (-1, 500, 1000):
            before = [item for item in model if item[:2] < (order, key)]
            assert row.tokens_before((order, key)) == sum(item[2] for item in before)


def test_a_long_row_is_cut_into_chunks() -> None:
    row = Row()
    items = [(float(number * 7919 % 10_007), number, number % 100) for number in range(5_000)]
    for item in items:
        row.add(item)
    row.check_integrity()
    assert len(row._chunks) > 5_000 // CHUNK
    assert list(row) == sorted(items)
    middle = sorted(items)[2_500]
    assert row.tokens_before(middle[:2]) == sum(item[2] for item in sorted(items)[:2_500])
    for item in items[::2]:
        row.remove(item)
    row.check_integrity()
    for item in items[1::2]:
        row.remove(item)
    assert not row
    assert row.tokens == 0
    assert ordered.CHUNK % 2 == 0
