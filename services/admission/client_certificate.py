"""What Envoy says of a client certificate that it has verified: the header x-forwarded-client-cert. Pure.

One element for each proxy that the request came through, with commas between; in it fields KEY=VALUE with semicolons
between; a value with special characters is in double quotes, where a backslash makes the next character a plain one.
Source: Envoy's documentation, "HTTP connection manager: HTTP headers: x-forwarded-client-cert".
"""

import re
from collections.abc import Sequence

from libs.errors import CredentialsInvalid

LONGEST = 16_384
"""Characters. Of the fields that Envoy can be told to send, names and hash have room."""
_NAMES = ("uri", "dns")
_FIELD = re.compile(r'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^",;]*)(;|\Z)')


def names_of(header: str) -> Sequence[str]:
    """The URI and DNS names of the certificate.

    Raises CredentialsInvalid unless there is exactly one element: an Envoy that sets the header itself (SANITIZE_SET)
    leaves no other, so a second one comes from somebody else.
    """
    if len(header) > LONGEST:
        raise CredentialsInvalid(f"the header about the client certificate is longer than {LONGEST} characters")
    names, place = [], 0
    while place < len(header):
        field = _FIELD.match(header, place)
        if field is None:
            raise CredentialsInvalid("the header about the client certificate is not that of one proxy")
        key, value = field[1].lower(), field[2]
        if key in _NAMES:
            names.append(re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value)
        place = field.end()
    return [name for name in names if name]
