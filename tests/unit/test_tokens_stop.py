import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.tokens.stop import StopStrings

texts = st.text("ab.", max_size=24)
stop_lists = st.lists(st.text("ab.", min_size=1, max_size=4), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The shortest beginning of `text` that ends in a stop string, without the longest such string."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


def run(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    finder = StopStrings(stops)
    shown = ""
    for piece in pieces:
        text, stop = finder.push(piece)
        shown += text
        if stop is not None:
            return shown, stop
    return shown + finder.flush(), None


@given(st.lists(texts, max_size=8), stop_lists)
def test_any_cut_into_pieces_gives_what_the_definition_says(pieces: list[str], stops: list[str]) -> None:
    assert run(pieces, stops) == naive("".join(pieces), stops)


@given(st.lists(texts, max_size=6), stop_lists)
def test_what_is_shown_depends_on_the_text_alone(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    if naive(text, stops)[1] is not None:
        return
    cut, whole = StopStrings(stops), StopStrings(stops)
    assert "".join(cut.push(piece)[0] for piece in pieces) == whole.push(text)[0]


def test_holds_back_only_what_may_be_a_beginning() -> None:
    finder = StopStrings(["</end>"])
    assert finder.push("answer </e") == ("answer ", None)
    assert finder.push("m>") == ("</em>", None)
    assert finder.push("<") == ("", None)
    assert finder.push("/end> not shown") == ("", "</end>")


def test_the_stop_that_is_complete_first_wins_over_the_one_that_begins_first() -> None:
    assert run(["xabcd"], ["abcd", "bc"]) == ("xa", "bc")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one character"):
        StopStrings(["a", ""])
