"""What a request's span says: what was asked, what was decided, and how it ended. Through both doors alike."""

from collections.abc import Sequence

from libs.telemetry import names
from libs.telemetry.tracing import Span
from services.admission.admit import Admitted, Checked
from services.admission.generation import Finish
from services.admission.ladder import Effects


def describe(span: Span, checked: Checked, admitted: Admitted, effects: Effects, now: float) -> None:
    """Sets what a request is, once it was admitted. For spans that are recorded."""
    request, work = checked.request, admitted.work
    sampling, grammar = work.sampling, work.grammar
    span.set(names.GEN_AI_OPERATION, names.CHAT if request.chat is not None else names.TEXT_COMPLETION)
    span.set(names.GEN_AI_PROVIDER, names.PROVIDER)
    span.set(names.GEN_AI_REQUEST_MODEL, request.model)
    span.set(names.GEN_AI_RESPONSE_MODEL, checked.spec.name)
    span.set(names.GEN_AI_REQUEST_STREAM, True)
    span.set(names.GEN_AI_OUTPUT_TYPE, "json" if grammar is not None and grammar.form == "json_schema" else "text")
    asked: Sequence[tuple[str, float | int | None]] = (
        (names.GEN_AI_REQUEST_MAX_TOKENS, sampling.max_tokens),
        (names.GEN_AI_REQUEST_TEMPERATURE, sampling.temperature),
        (names.GEN_AI_REQUEST_TOP_P, sampling.top_p),
        (names.GEN_AI_REQUEST_TOP_K, sampling.top_k),
        (names.GEN_AI_REQUEST_SEED, sampling.seed),
    )
    for name, value in asked:
        if value is not None:
            span.set(name, value)
    span.set(names.GEN_AI_INPUT_TOKENS, len(work.prompt))
    span.set(names.TENANT, work.tenant)
    span.set(names.TIER, work.tier.name.lower())
    span.set(names.DEADLINE_LEFT, work.deadline - now)
    span.set(names.REASON, admitted.reason)
    if effects.level:
        span.set(names.DEGRADATION_LEVEL, effects.level)
        span.set(names.DEGRADATION_RUNGS, list(effects.rungs))
    if request.contract:
        span.set(names.CONTRACT, request.contract)
    for key, text in request.tags.items():
        span.set(f"headrace.tag.{key}", text)


def describe_finish(span: Span, finish: Finish) -> None:
    """Sets what a request's end was."""
    if not span.recording:
        return
    span.set(names.GEN_AI_OUTPUT_TOKENS, finish.output_tokens)
    span.set(names.GEN_AI_CACHED_TOKENS, finish.cached_tokens)
    span.set(names.GEN_AI_FINISH_REASONS, [finish.reason.name.lower()])
    span.set(names.GEN_AI_TIME_TO_FIRST_CHUNK, finish.first_token_s)
    if finish.tried:
        span.set(names.TRIED, list(finish.tried))
