"""`python -m services.executor.trtllm.probe FD`: whether this interpreter has a TensorRT-LLM that can be used."""

import sys

from services.executor.child.inbox import Inbox, die_with_parent
from services.executor.child.wire import encode
from services.executor.trtllm.compat import ApiUnknown, find
from services.executor.trtllm.wire import Found, Missing


def main() -> int:
    """Imports it and says what came of that; an import may fail in many ways, so every one is told."""
    die_with_parent()
    inbox = Inbox.from_descriptor(int(sys.argv[1]))
    answer: Found | Missing
    try:
        answer = Found(find().version)
    except ApiUnknown as error:
        answer = Missing(str(error))
    except Exception as error:
        answer = Missing(f"{type(error).__name__}: {error}")
    inbox.send(encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
