"""Regular expressions that operators write: those that are none, and those that could take for ever. Pure.

Python's engine tries alternatives one by one. A repetition without bound inside another, as in "(a+)+", takes time
that doubles with each character it does not match (Cox, "Regular Expression Matching Can Be Simple And Fast", 2007);
references back have no bound either. What is written here runs against answers of models, so neither is taken.
"""

import re
import warnings

MOST_CHARACTERS = 500
MOST_PATTERNS = 16
_UNBOUNDED = re.compile(r"[*+]|\{\d*,\}")
_REPEAT = re.compile(r"[*+?]|\{\d*,?\d*\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.S)
_BACK = re.compile(r"\\[1-9]|\(\?P=")


def fault(pattern: str) -> str:
    """What is wrong with a pattern; "" for a sound one."""
    if not pattern:
        return "empty: it would match any text"
    if len(pattern) > MOST_CHARACTERS:
        return f"{len(pattern)} characters: at most {MOST_CHARACTERS}"
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a later Python may read in another way
            compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"not a regular expression: {error}"
    if compiled.search("\0") is not None:
        return "it matches any text"
    return _endless(pattern)


def _endless(pattern: str) -> str:
    """Whether a group that repeats without bound has such a repetition in it. Reads the text once."""
    open_groups = [False]
    """For each group around here: whether it has a repetition without bound in it."""
    position = 0
    while position < len(pattern):
        if _BACK.match(pattern, position):
            return "a reference back can take time without bound: leave it out"
        character = pattern[position]
        if character == "(":
            open_groups.append(False)
            position += 1
            continue
        inner, end = False, position + 1
        if character == "\\":
            end = position + 2
        elif character == "[" and (found := _CLASS.match(pattern, position)):
            end = found.end()
        elif character == ")":
            inner = open_groups.pop() if len(open_groups) > 1 else False
            open_groups[-1] |= inner
        if found := _UNBOUNDED.match(pattern, end):
            if inner:
                return "a repetition without bound inside another, as in '(a+)+', can take for ever: bound one of them"
            open_groups[-1] = True
        if found := _REPEAT.match(pattern, end):
            end = found.end()
        position = end
    return ""
