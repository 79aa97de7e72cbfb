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

_CANDIDATE = re.compile(
    r"""
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
_DECIMAL = re.compile(r"\d+\.\d+")


def redact(text: str) -> str:
    """The text with e-mail addresses, keys, bank accounts, cards, IP addresses, and long numbers, as of telephones and
    papers, replaced by their kind: "[EMAIL]". Linear in its length: some 0.03 µs per character, 0.6 at worst."""
    return _CANDIDATE.sub(_replace, text)


def _replace(match: re.Match[str]) -> str:
    found = match[0]
    match match.lastgroup:
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
    digits = "".join(character for character in found if character.isdigit())
    if len(digits) < LEAST_DIGITS or _DECIMAL.fullmatch(found):
        return found
    return "[CARD]" if len(digits) in CARD_DIGITS and luhn.is_valid(digits) else "[NUMBER]"


def _is_ip(found: str) -> bool:
    try:
        ip_address(found)
    except ValueError:
        return False
    return True
