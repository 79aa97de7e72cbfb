"""What exceptions of engines say, in one line. Pure."""

import re

MOST_CHARACTERS = 500


def last_line(error: BaseException) -> str:
    """What an exception says at its end, without the places in the sources of C++."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    text = re.sub(r"^.*?\.(cc|cpp|hpp):\d+:? ", "", text)
    return re.sub(r"^Check failed: \(.*?\) is false: ", "", text)[:MOST_CHARACTERS]
