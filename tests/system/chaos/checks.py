"""What must hold after every round, whatever was broken in it: history in, violations out.

Each check returns a line for everything that is wrong, and nothing when all is well.
"""

from collections.abc import Callable, Mapping, Sequence

from services.console.mesh.plan import DOORS
from tests.system.chaos.history import Expected, Injected, Record, Rest, Round, TenantUsage, Usage
from tests.system.chaos.schedule import KINDS, service_of

LINGER_S = 12.0
"""After a fault is mended, its errors may still be told: the SDK tries for ten seconds first."""
MEMORY_GROWTH = 0.15
MEMORY_SLACK = 8_000_000
"""Bytes. Both as the fuzzer has them: what an allocator keeps by chance of a process of 60 MB is 15 %."""
FILES_SLACK = 6
"""Connections to neighbors that were not there before, and a log that was opened anew."""
TASKS_SLACK = 6
"""Watches of etcd that are between two tries, lanes to a neighbor that has come."""


def ended_once(records: Sequence[Record]) -> list[str]:
    """Every request has one end: none is lost, none is told twice."""
    return [f"{_name(record)} ended {record.ends} times" for record in records if record.ends != 1]


def tokens_equal(records: Sequence[Record], expected: Sequence[Expected]) -> list[str]:
    """What came is what comes undisturbed; of requests that did not finish, its beginning."""
    found = []
    for record in records:
        want = expected[record.question]
        tokens, text = tuple(record.tokens), "".join(record.text)
        if record.finished:
            if tokens != want.tokens:
                found.append(f"{_name(record)}: {_difference(tokens, want.tokens)}")
            elif text != want.text:
                found.append(f"{_name(record)}: the tokens are right, and the text is not: {text!r:.80}")
        elif tokens != want.tokens[: len(tokens)]:
            found.append(f"{_name(record)}, which did not finish: {_difference(tokens, want.tokens)}")
    return found


def finish_usage(records: Sequence[Record], expected: Sequence[Expected]) -> list[str]:
    """A finish counts the prompt and every token of the answer once, however often the request was sent."""
    return [
        f"{_name(record)}: its finish counts {record.usage}, and it used {expected[record.question].usage}"
        for record in records
        if record.usage is not None and record.usage != expected[record.question].usage
    ]


def errors_allowed(records: Sequence[Record], faults: Sequence[Injected], documented: frozenset[str]) -> list[str]:
    """Every error is a documented one, and a fault that may cause it was near."""
    found = []
    for record in records:
        if not record.error:
            continue
        if record.error not in documented:
            found.append(f"{_name(record)} ended with an error that is not documented: {record.error}: {record.said}")
        elif not any(record.error in KINDS[each.fault.kind].allows for each in faults if _felt(record, each)):
            found.append(f"{_name(record)} ended with {record.error}, which no fault explains: {record.said}")
    return found


def usage_once(
    records: Sequence[Record],
    expected: Sequence[Expected],
    before: Mapping[str, Rest],
    after: Mapping[str, Rest],
    tenants: Sequence[str],
) -> list[str]:
    """The tenants' pages count every request and token once.

    Where no client leaves or has to send again and no admission dies, they are right to the token. A request that was
    sent again is counted where it was and where it went; one that was left, until the mesh heard of it; an admission
    that died has lost its count. These have bounds.
    """
    admissions = [name for name in sorted({*before, *after}) if service_of(name) in DOORS]
    died = any(_life(before, name) != _life(after, name) for name in admissions)
    found = []
    for tenant in tenants:
        own = [(record, expected[record.question].usage) for record in records if record.tenant == tenant]
        pages = [_page(after, name, tenant) for name in admissions]
        pasts = [_page(before, name, tenant) for name in admissions if _life(before, name) == _life(after, name)]
        if running := sum(page.running for page in pages):
            found.append(f"{tenant}: {running} requests are counted as running, and none does")
        for what, of_page, of_record in _COUNTED:
            count = sum(map(of_page, pages)) - sum(map(of_page, pasts))
            bounds = [of_record(record, use) for record, use in own]
            low, high = (0 if died else sum(low for low, _ in bounds)), sum(high for _, high in bounds)
            if not low <= count <= high:
                should = f"{low}" if low == high else f"{low} to {high}"
                found.append(f"{tenant}: {count} {what} are counted, and should be {should}")
    return found


def _requests(record: Record, _: Usage) -> tuple[int, int]:
    return int(not record.error), 1 + record.resent


def _prompt(record: Record, use: Usage) -> tuple[int, int]:
    return use.prompt * int(not record.error), use.prompt * (1 + record.resent)


def _output(record: Record, use: Usage) -> tuple[int, int]:
    return len(record.tokens), use.output * (1 + record.resent)


_COUNTED: Sequence[tuple[str, Callable[[TenantUsage], int], Callable[[Record, Usage], tuple[int, int]]]] = (
    ("requests", lambda page: page.requests, _requests),
    ("prompt tokens", lambda page: page.prompt, _prompt),
    ("answer tokens", lambda page: page.output, _output),
)


def _life(rests: Mapping[str, Rest], name: str) -> int:
    return rests[name].life if name in rests else 0


def _page(rests: Mapping[str, Rest], name: str, tenant: str) -> TenantUsage:
    return rests[name].usage.get(tenant, TenantUsage()) if name in rests else TenantUsage()


def no_leaks(before: Mapping[str, Rest], after: Mapping[str, Rest]) -> list[str]:
    """Memory, files and tasks of every process that lived on are near what they were."""
    found = []
    for name, was in before.items():
        now = after.get(name)
        if now is None:
            found.append(f"{name} is not there any more")
        elif now.life == was.life:
            if now.resident > was.resident * (1 + MEMORY_GROWTH) + MEMORY_SLACK:
                found.append(f"{name} grew from {was.resident / 1e6:.0f} to {now.resident / 1e6:.0f} MB")
            if now.files > was.files + FILES_SLACK:
                found.append(f"{name} had {was.files} files open, and has {now.files}")
            if now.tasks > was.tasks + TASKS_SLACK:
                found.append(f"{name} had {was.tasks} tasks, and has {now.tasks}")
    return found


def violations(
    one: Round, expected: Sequence[Expected], tenants: Sequence[str], documented: frozenset[str]
) -> list[str]:
    """Everything that is wrong with a round."""
    checks: list[Callable[[], list[str]]] = [
        lambda: ended_once(one.records),
        lambda: tokens_equal(one.records, expected),
        lambda: finish_usage(one.records, expected),
        lambda: errors_allowed(one.records, one.faults, documented),
        lambda: usage_once(one.records, expected, one.before, one.after, tenants),
        lambda: no_leaks(one.first, one.after),
        lambda: [f"left behind: {line}" for line in one.busy],
        lambda: one.deaths,
        lambda: one.traces,
    ]
    return [line for check in checks for line in check()]


def _felt(record: Record, injected: Injected) -> bool:
    """Whether the fault may have touched the request."""
    ended_s = record.ended_s if record.ended_s is not None else float("inf")
    return record.began_s <= injected.mended_s + LINGER_S and ended_s >= injected.began_s


def _difference(tokens: Sequence[int], want: Sequence[int]) -> str:
    for place, (came, wanted) in enumerate(zip(tokens, want, strict=False)):
        if came != wanted:
            return f"token {place} is {came}, and should be {wanted} ({len(tokens)} of {len(want)} tokens)"
    return f"{len(tokens)} tokens came, and should be {len(want)}"


def _name(record: Record) -> str:
    ended = "without end" if record.ended_s is None else f"to {record.ended_s:.1f} s"
    again = f", sent {record.resent + 1} times" if record.resent else ""
    return f"{record.tenant}'s {record.door} of question {record.question} ({record.began_s:.1f} {ended}{again})"
