"""Can a loaded model do what a work asks for? Pure."""

from libs.errors import NotSupported
from libs.lane.work import Work
from services.executor.engine import Capabilities


def refusal(work: Work, can: Capabilities) -> NotSupported | None:
    """The error with everything that a work asks for and the model lacks; None when it lacks nothing.

    A seed that cannot be kept, and a priority that cannot be heeded, harm nobody: they are no reason to refuse.
    """
    sampling = work.sampling
    penalized = bool(sampling.presence_penalty or sampling.frequency_penalty)
    penalized = penalized or sampling.repetition_penalty not in (None, 1.0)  # 1 is how "none" is written
    lacking = [
        what
        for what, asked in (
            (f"a grammar in the form {work.grammar.form}" if work.grammar else "", _lacks_grammar(work, can)),
            ("log-probabilities", work.log_probs and not can.log_probs),
            ("adapters", bool(work.adapter) and can.adapters == "none"),
            ("penalties", penalized and not can.penalties),
            ("ignore_end", sampling.ignore_end and not can.ignore_end),
            ("top_k", bool(sampling.top_k) and not can.top_k),
        )
        if asked
    ]
    return NotSupported(f"the engine of this model does not support {', '.join(lacking)}") if lacking else None


def _lacks_grammar(work: Work, can: Capabilities) -> bool:
    return work.grammar is not None and work.grammar.form not in can.grammars
