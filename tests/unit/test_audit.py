"""The audit log: what is kept, for how long, and what is taken out of it."""

import re
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.clock import SystemClock
from services.admission.audit import Audit, Entry, store
from services.admission.audit import redact as redaction
from services.admission.audit.redact import redact
from services.admission.audit.store import Search, Store
from services.admission.policy import Storage

DAY = 86_400.0


def entry(tenant: str = "acme", time: float = 0.0, **fields: object) -> Entry:
    return Entry(time=time, tenant=tenant, action="generate", outcome="ok", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("write to jane.doe+x@mail.example.co.uk!", "write to [EMAIL]!"),
        ("<bob@example.org>", "<[EMAIL]>"),
        ("call +1 212 555 0199 or (030) 901820", "call [NUMBER] or [NUMBER]"),
        ("card 4111 1111 1111 1111.", "card [CARD]."),
        ("card 4111 1111 1111 1112", "card [NUMBER]"),
        ("IBAN DE89 3704 0044 0532 0130 00", "IBAN [IBAN]"),
        ("from 10.1.2.3 and fe80::1 to 2001:db8:0:0:0:0:0:1", "from [IP] and [IP] to [IP]"),
        ("key sk-abcdefghijklmnop0123456789", "key [SECRET]"),
        ("ssn 078-05-1120", "ssn [NUMBER]"),
        ("in 2026 12,345 users at 3.14159265, at 10:30:45", "in 2026 12,345 users at 3.14159265, at 10:30:45"),
        ("999.1.2.3 v1.2.3 a@b def f(x): 1:2", "999.1.2.3 v1.2.3 a@b def f(x): 1:2"),
    ],
)  # fmt: skip
def test_what_looks_like_personal_data_is_replaced_by_its_kind(text: str, left: str) -> None:
    assert redact(text) == left


@given(st.text(st.characters(categories=["L", "Z"]), max_size=300))
def test_texts_of_letters_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


ONE_PASS = re.compile(redaction._FIRST.pattern.replace("[^ ]*?", "", 1), re.VERBOSE)
PIECES = st.sampled_from([
    " ", "  ", "\n", "\t", "word ", "a@b.cc", "1.2.3.4", "::", "fe80::1", "12:30", "+49 (30) 123-4567", "1234567",
    "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "DE89 ABCD EFGH IJKL", "sk-", "eyJ", "AKIA", "ghp_",
    "abcdefghijklmnopqr", "٣٤٥٦٧٨٩", "é", ",", "(", "@", ":",
])  # fmt: skip


@settings(deadline=None)
@given(st.lists(PIECES | st.text(max_size=2), max_size=20).map("".join))
def test_what_is_replaced_is_what_one_pass_over_everything_finds(text: str) -> None:
    assert redact(text) == ONE_PASS.sub(lambda found: redaction._replaced(found.lastgroup or "", found[0]), text)


ADDRESS = st.from_regex(r"[a-z]{1,10}@[a-z]{1,10}\.[a-z]{2,3}", fullmatch=True)


@given(st.text(max_size=100), ADDRESS, st.text(max_size=100))
def test_an_address_among_blanks_never_stays(before: str, address: str, after: str) -> None:
    assert address not in redact(f"{before} {address} {after}") or address in f"{before} {after}"


def test_the_newest_come_first_and_searches_narrow_them(tmp_path: Path) -> None:
    files = Store(tmp_path)
    files.append([entry(time=3 * DAY, request_id="c"), entry(time=DAY, request_id="a")])
    files.append([entry("other", 3 * DAY + 1, request_id="d", change="{}"), entry(time=2 * DAY, request_id="b")])

    def found(**search: object) -> str:
        return "".join(each.request_id for each in files.find(Search(**search)))  # type: ignore[arg-type]

    assert found() == "dcba"
    assert found(tenant="acme") == "cba"
    assert found(since=2 * DAY, until=3 * DAY + 1) == "cb"
    assert found(request_id="b") == "b"
    assert found(operators_only=True) == "d"
    assert found(tenant="nobody") == ""


def test_a_search_reads_no_more_than_is_asked_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many, read = Store(tmp_path), list[Path]()
    for tenant in ("acme", "other"):
        many.append([entry(tenant, time=float(second), request_id="x" * 200) for second in range(5_000)])
    opened = Path.open

    def noted(self: Path, *args: str, **more: object) -> object:
        read.append(self)
        return opened(self, *args, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", noted)
    assert [found.time for found in islice(many.find(Search()), 20)] == [float(4_999 - n // 2) for n in range(20)]
    assert 0 < len(read) < 10
    assert sum(1 for _ in many.find(Search(since=4_990.0))) == 20
    assert len(read) < 20


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=60), st.integers(1, 50))
def test_lines_from_behind_are_the_lines(lines: list[bytes], chunk: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_CHUNK", chunk)
        path = Path(folder) / "lines"
        path.write_bytes(b"\n".join(lines))
        assert list(store._backwards(path)) == [line for line in reversed(lines) if line]


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    files = Store(tmp_path)
    files.append([entry(request_id="a")])
    path = next(tmp_path.rglob("*.jsonl"))
    path.write_bytes(path.read_bytes() + b'{"time":1.0,"ten\n')
    files.append([entry(request_id="b")])
    assert sorted(each.request_id for each in files.find(Search())) == ["a", "b"]


def test_days_past_a_tenants_retention_go(tmp_path: Path) -> None:
    files = Store(tmp_path)
    files.append([entry(time=day * DAY) for day in range(10)])
    files.append([entry("other", day * DAY) for day in range(10)])
    assert files.expire(lambda tenant: 3 if tenant == "acme" else 100, 9 * DAY) == 6
    assert len(list(files.find(Search(tenant="acme")))) == 4
    assert len(list(files.find(Search(tenant="other")))) == 10


def test_all_of_a_tenant_goes_and_nothing_of_others(tmp_path: Path) -> None:
    files = Store(tmp_path)
    files.append([entry(), entry(), entry("other")])
    assert files.delete("acme") == 2
    assert files.delete("acme") == 0
    assert [each.tenant for each in files.find(Search())] == ["other"]


async def test_texts_are_kept_as_the_rules_say(tmp_path: Path) -> None:
    audit = Audit(tmp_path, "admission-1", lambda _: 30, lambda _: None, SystemClock())
    audit.start()
    now = SystemClock().now()
    audit.record(entry(time=now, prompt="to a@b.example", answer="no"), Storage.REDACTED)
    audit.record(entry(time=now, prompt="to a@b.example"), Storage.FULL)
    await audit.close()
    redacted, full = sorted(await audit.find(Search(), 10), key=lambda each: each.sequence)
    assert (redacted.prompt, redacted.answer, redacted.sequence) == ("to [EMAIL]", "no", 1)
    assert (full.prompt, full.instance) == ("to a@b.example", "admission-1")


async def test_when_the_disk_does_not_take_them_entries_are_counted(tmp_path: Path) -> None:
    lost: list[int] = []
    (tmp_path / "file").write_text("not a folder")
    audit = Audit(tmp_path / "file", "admission-1", lambda _: 30, lost.append, SystemClock())
    audit.start()
    audit.record(entry())
    audit.record(entry())
    await audit.close()
    assert sum(lost) == 2


async def test_what_waits_is_deleted_with_the_rest(tmp_path: Path) -> None:
    audit = Audit(tmp_path, "admission-1", lambda _: 30, lambda _: None, SystemClock())
    now = SystemClock().now()
    audit.record(entry(time=now))
    audit.record(entry("other", now))
    assert await audit.delete("acme") == 1
    audit.start()
    await audit.close()
    assert [each.tenant for each in await audit.find(Search(), 10)] == ["other"]


async def test_what_waits_is_found(tmp_path: Path) -> None:
    audit = Audit(tmp_path, "admission-1", lambda _: 30, lambda _: None, SystemClock())
    audit.record(entry(time=SystemClock().now()))
    assert len(await audit.find(Search(), 10)) == 1
    audit.start()
    await audit.close()
    assert len(await audit.find(Search(), 10)) == 1
