"""What the child knows of its works: which run, which wait, which blocks they hold. Pure.

The engine is given a work only when it has a slot and, by the model, blocks for it; so "started" is the
moment of entry, a work that waits can be cancelled without the engine knowing, and with the ledger's
reservations in front the engine has no reason to preempt.

The blocks are a model of what the engine does (Exactness.MODELLED): it tells neither events nor hits. Paging
and least-recently-used prefix caching are those of services.executor.blocks; the engine's block size is
measured. Where the two can differ: the engine takes a prompt's blocks chunk by chunk, the model all at entry;
the engine also finds blocks that are not full; it does not know our hashes' salts.
"""

import math
from collections import deque
from collections.abc import Sequence

from libs.tokens.blocks import chain, extend, salt
from services.executor.blocks import PagedBlocks
from services.executor.openvino.wire import Ended, Stepped, Submit

FAULTS_REMEMBERED = 64
"""Steps without a fault after which the engine counts as healthy again."""


class Sequence_:
    pass
