"""Takes out of a text what looks like personal data. Pure.

One pass finds candidates; what is a matter of a checksum is then checked by python-stdnum, a well-kept collection of
such rules. Names of people and their addresses are not found: that takes a model of language, which costs 50 µs per
character (docs/decisions/0011-redaction.md). Tenants whose prompts have such in them keep none of their text.
"""

import re
from ipaddress import ip_address

from stdnum import iban, luhn

LEAST_DIGITS = 7
"""Of a number that nothing else is known of: shorter ones are years, sizes and counts."""
CARD_DIGITS = range(12, 20)

_FIRST = re.compile(
    r"""
    [^ ]*?           # the first of its run
    (?<! [\w.+%-] )  # at the beginning of a word: so each character is looked at a few times, not 64
    (?! [A-Za-z]{1,15} [.,;!?]? \s )  # nearly every word of a text: too short for a secret, and without a digit or @
    (?:
      (?P<email> [A-Za-z0-9_%+] [A-Za-z0-9._%+-]{0,63} @ [A-Za-z0-9-]{1,63} (?: \. [A-Za-z0-9-]{1,63} ){1,8} )
    | (?P<secret> (?: sk|pk|ghp|gho|xox[abp]|AKIA|eyJ ) [-_A-Za-z0-9.]{16,512} )
    | (?P<iban> [A-Z]{2} \d{2} (?: [ ]? [A-Z0-9]{2,4} ){3,8} \b )
    | (?P<ip> \d{1,3} (?: \. \d{1,3} ){3} (?! [\w.] ) | (?: [0-9A-Fa-f]{0,4} : ){2,7} [0-9A-Fa-f]{0,4} (?! [\w:] ) )
    | (?P<number> [+(]? \d (?: [ ()/.-]{0,2} \d ){6,24} (?! \w ) )
    )
    """,
    re.VERBOSE,
)
_SUSPECT = re.compile(r"[0-9@:\x80-\U0010ffff] (?<! : (?! [0-9A-Fa-f]{0,4} : ) )", re.VERBOSE)
"""Stands in every candidate but secrets, with no blank in front of it. Not every digit is one of ASCII."""
_ANY = re.compile("[^ ]")
_SECRETS = [re.compile(f"{begins}[-_A-Za-z0-9.]{{16}}") for begins in ("k", "gh[po]", "xox[abp]", "AKIA", "eyJ")]
"""Each begins with a literal, which `re` finds ten times as fast as a choice. Where none is found is no secret."""
_DECIMAL = re.compile(r"\d+\.\d+")


def redact(text: str) -> str:
    """The text with e-mail addresses, keys, bank accounts, cards, IP addresses, and long numbers, as of telephones and
    papers, replaced by their kind: "[EMAIL]". Linear in its length: some 0.01 µs per character, 0.6 at worst.

    Only runs between blanks that something suspect is in are looked at: in most texts few.
    """
    suspect = _ANY if any(secret.search(text) for secret in _SECRETS) else _SUSPECT
    kept: list[str] = []
    done = at = 0
    while (hit := suspect.search(text, at)) is not None:
        found = _FIRST.match(text, max(text.rfind(" ", at, hit.start()) + 1, at))
        if found is None:
            at = text.find(" ", hit.end())
            if at < 0:
                break
            continue
        kind = found.lastgroup or ""
        begin, at = found.span(kind)
        kept += text[done:begin], _replaced(kind, found[kind])
        done = at
    return "".join(kept) + text[done:] if kept else text


def _replaced(kind: str, found: str) -> str:
    match kind:
        case "email":
            return "[EMAIL]"
        case "secret":
            return "[SECRET]"
        case "iban":
            return "[IBAN]" if iban.is_valid(found) else _number(found)
        case "ip":
            return "[IP]" if _is_ip(found) else found
        case _:
            return _number(found)


def _number(found: str) -> str:
    digits = "".join(filter(str.isdigit, found))
    if len(digits) < LEAST_DIGITS or _DECIMAL.fullmatch(found):
        return found
    return "[CARD]" if len(digits) in CARD_DIGITS and luhn.is_valid(digits) else "[NUMBER]"


def _is_ip(found: str) -> bool:
    try:
        ip_address(found)
    except ValueError:
        return False
    return True
