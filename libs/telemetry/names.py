"""Every name that the mesh's telemetry uses: spans, attributes, events and metrics.

Attributes follow OpenTelemetry's semantic conventions for RPC (1.40: `rpc.system.name` and
`rpc.response.status_code`, which replaced `rpc.system` and `rpc.grpc.status_code`) and for generative AI.
What these do not know is under `headrace.`. Metrics are named `headrace_<stage>_<noun>_<unit>`; the
`gen_ai.server.*` metrics of the conventions stand beside them, with dots as underscores.

Values of labels come from small known sets, or pass `libs.telemetry.metrics.bounded_label` first.
"""

from dataclasses import dataclass
from typing import Literal

# --- Spans of one request, in order, with the stage that makes each.

GENERATE = "headrace.inference.v1.InferenceService/Generate"
"""Admission, SERVER: the whole request."""
SESSION = "headrace.inference.v1.InferenceService/Session"
"""Admission, SERVER: one request of a session. A span per stream would last for days."""
ROUTE = "route"
"""Router, child of admission's: from the work's arrival to its outcome."""
QUEUE = "queue"
"""Batcher, child of router's: from arrival, or from being queued again, to dispatch."""
DISPATCH = "dispatch"
"""Batcher, child of router's: from the choice of an executor to its outcome. One per attempt."""
LOOKUP = "lookup"
"""KV-cache manager, child of the batcher's dispatch: match and reservation."""
PREFILL = "prefill"
"""Executor, child of the batcher's dispatch: from submission to the first token."""
DECODE = "decode"
"""Executor, child of the batcher's dispatch: from the first token to the outcome."""

STEP = "step"
"""Admission, child of its own span: a later step of a conversation; the first one runs on the request's span."""
EXECUTE_TOOL = "execute_tool"
"""Admission, child of its own span: one call of a tool, approval and repetitions included. The name of the operation
is that of the conventions for generative AI."""

# --- Events on spans.

FALLBACK = "fallback"
"""On the router's span: a model could not answer, the next is tried."""
HEDGED = "hedged"
"""On the router's span: a second copy was sent."""
ESCALATED = "escalated"
"""On the router's span: a cascade's answer was in doubt, the next model is asked."""
APPROVAL = "approval"
"""On the span of a tool call: a person decided."""

FIRST_TOKEN = "first_token"  # noqa: S105
"""On admission's span: the first token was written to the client."""
RESUMED = "resumed"
"""The lane below broke, and the work was sent again behind the tokens so far."""
CANCELLED = "cancelled"
"""The caller went away or changed its mind."""

# --- Attributes of the conventions.

SERVICE_NAME = "service.name"
SERVICE_NAMESPACE = "service.namespace"
SERVICE_VERSION = "service.version"
SERVICE_INSTANCE_ID = "service.instance.id"

RPC_SYSTEM = "rpc.system.name"
"""Always "grpc"."""
RPC_METHOD = "rpc.method"
"""The full name: package.Service/Method."""
RPC_STATUS = "rpc.response.status_code"
"""The name of the gRPC code: "OK", "UNAVAILABLE"."""
ERROR_TYPE = "error.type"
"""The reason of a HeadraceError, else the name of an exception's class."""

GEN_AI_OPERATION = "gen_ai.operation.name"
"""One of CHAT and TEXT_COMPLETION."""
CHAT = "chat"
TEXT_COMPLETION = "text_completion"
GEN_AI_PROVIDER = "gen_ai.provider.name"
"""Always PROVIDER: the mesh speaks for itself, as every provider does."""
PROVIDER = "headrace"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
"""What was asked for."""
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
"""What ran."""
GEN_AI_REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_TEMPERATURE = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P = "gen_ai.request.top_p"
GEN_AI_REQUEST_TOP_K = "gen_ai.request.top_k"
GEN_AI_REQUEST_SEED = "gen_ai.request.seed"
GEN_AI_REQUEST_STREAM = "gen_ai.request.stream"
GEN_AI_OUTPUT_TYPE = "gen_ai.output.type"
"""One of "text" and "json"."""
GEN_AI_FINISH_REASONS = "gen_ai.response.finish_reasons"
"""A list of one: "stop" or "length"."""
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
"""Seconds."""

# --- Attributes of the mesh.

REQUEST_ID = "headrace.request_id"
"""On admission's span at least: what `headrace trace` finds a trace by."""
TENANT = "headrace.tenant"
TIER = "headrace.tier"
"""One of "interactive" and "async"."""
POOL = "headrace.pool"
EXECUTOR = "headrace.executor"
ADAPTER = "headrace.adapter"
"""The adapter's name, where there is one."""
ATTEMPT = "headrace.attempt"
"""1 for the first dispatch, 2 after it had to be sent again."""
CHOICE = "headrace.decision.choice"
"""What a stage decided, in a word or two."""
REASON = "headrace.decision.reason"
"""Why, as a sentence for an operator."""
DEADLINE_LEFT = "headrace.deadline.left_s"
"""Seconds to the deadline when the span started."""
RESUMED_TOKENS = "headrace.tokens.resumed"
"""Tokens of the answer that had passed on before this span started."""
QUEUE_WAITING = "headrace.queue.waiting"
"""Works that waited in front of this one when it arrived."""
BLOCKS_MATCHED = "headrace.blocks.matched"
BLOCKS_RESERVED = "headrace.blocks.reserved"
HELD_FOR = "headrace.queue.held_for"
"""What a work was held back for, last."""
BATCH_WORKS = "headrace.batch.works"
"""Works in the engine's batch when this one joined."""
DEGRADATION_LEVEL = "headrace.degradation.level"
"""Rungs of the tier's ladder that were in force for the request; unset when there were none."""
DEGRADATION_RUNGS = "headrace.degradation.rungs"
"""Their names."""
RULE = "headrace.rule"
"""The rule that chose a request's model, on the router's span."""
TRIED = "headrace.tried"
"""Models that were tried in front of the one that answered."""
CONTRACT = "headrace.contract"
"""The contract that a request is under."""
CONTRACT_STEP = "headrace.contract.step"
"""The number of a step of the conversation, from 1."""
GEN_AI_TOOL_NAME = "gen_ai.tool.name"


# --- Metrics.


@dataclass(frozen=True, slots=True)
class Metric:
    """The declaration of a metric; `libs.telemetry.metrics.Metrics` makes it."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    text: str
    """What it says, for people; ends up in the exposition."""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram."""


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric("counter", name, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric("gauge", name, text, labels)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> Metric:
    return Metric("histogram", name, text, labels, buckets)


WAIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STEP_BUCKETS = (
    0.0005,
    0.001,
    0.002,
    0.004,
    0.008,
    0.012,
    0.016,
    0.024,
    0.032,
    0.064,
    0.128,
    0.256,
    0.512,
    1.024,
)
SIZE_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)

# The buckets of these three are those of the conventions. Made by admission, beside its own.
_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
GEN_AI_SERVER_REQUEST_DURATION = _histogram(
    "gen_ai_server_request_duration_seconds", "Time to the last token, or to the error.",
    *_GEN_AI, "error_type",
    buckets=(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)  # fmt: skip
GEN_AI_SERVER_TIME_TO_FIRST_TOKEN = _histogram(
    "gen_ai_server_time_to_first_token_seconds", "Time to the first token of requests that ended well.",
    *_GEN_AI,
    buckets=(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)  # fmt: skip
GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN = _histogram(
    "gen_ai_server_time_per_output_token_seconds", "Time per token behind the first one.",
    *_GEN_AI,
    buckets=(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)  # fmt: skip

ADMISSION_REQUESTS = _counter(
    "headrace_admission_requests_total",
    "Requests that ended, by result (OK, or the reason).",
    "door",
    "model",
    "tier",
    "result",
)
ADMISSION_RUNNING = _gauge("headrace_admission_running_requests", "Requests in flight.", "door")
ADMISSION_TOKENS = _counter(
    "headrace_admission_tokens_total", "Tokens, by kind: prompt, cached or output.", "tenant", "model", "kind"
)
ADMISSION_SESSIONS = _gauge("headrace_admission_open_sessions", "Session streams that are open.")
ADMISSION_AUDIT_LOST = _counter(
    "headrace_admission_audit_lost_total", "Entries of the audit log that could not be written."
)
ADMISSION_DEGRADATION = _gauge(
    "headrace_admission_degradation_level", "Rungs of a tier's ladder that are in force.", "model", "tier"
)
ADMISSION_CONVERSATIONS = _gauge("headrace_admission_conversations", "Answers under contracts in flight.")
ADMISSION_CONTRACTS = _counter(
    "headrace_admission_contracts_total",
    "Answers under contracts that ended, by result (OK, or the reason).",
    "contract",
    "result",
)
ADMISSION_REPAIRS = _counter("headrace_admission_repairs_total", "Answers that were asked for again.", "contract")
ADMISSION_TOOL_CALLS = _counter(
    "headrace_admission_tool_calls_total",
    "Tool calls that models asked for, by result: done, refused, denied or failed.",
    "tool",
    "result",
)
ADMISSION_REFUSALS = _counter("headrace_admission_refusals_total", "Requests refused, by error reason.", "reason")

ROUTER_WORKS = _counter(
    "headrace_router_works_total", "Works that ended, by model and result (OK, or the reason).", "model", "result"
)
ROUTER_RUNNING = _gauge("headrace_router_running_works", "Works in flight.", "model")
ROUTER_RESUMES = _counter("headrace_router_resumes_total", "Works sent again after their lane broke.", "model")
ROUTER_LANES = _gauge("headrace_router_ready_lanes", "Lanes to batchers that carry works.")
ROUTER_CHOICES = _counter(
    "headrace_router_choices_total", "Requests of a route, by the rule that chose.", "route", "rule"
)
ROUTER_FALLBACKS = _counter(
    "headrace_router_fallbacks_total", "Models passed over, by why they could not answer.", "route", "model", "reason"
)
ROUTER_BREAKERS = _gauge(
    "headrace_router_breaker_position",
    "The worst of the breakers of a model's pools: 0 closed, 1 half-open, 2 open.",
    "model",
)
ROUTER_HEDGES = _counter("headrace_router_hedges_total", "Copies of slow requests: sent, and won.", "route", "result")
ROUTER_SHADOWS = _counter(
    "headrace_router_shadows_total", "Shadows: sent, and how they ended (OK, or the reason).", "route", "result"
)
ROUTER_JUDGEMENTS = _counter(
    "headrace_router_judgements_total", "Answers of cascades: kept, or escalated.", "route", "model", "result"
)
ROUTER_INTENTS = _counter(
    "headrace_router_intents_total",
    "Texts whose intent was asked for: told, none, cached, full, late, untrained or failed.",
    "result",
)
ROUTER_PARKED = _gauge("headrace_router_parked_works", "Works that wait for a model to come back.")

BATCHER_WORKS = _counter(
    "headrace_batcher_works_total", "Works that ended, by result (OK, or the reason).", "model", "tier", "result"
)
BATCHER_WAITING = _gauge("headrace_batcher_waiting_works", "Works in the queue.", "model", "tier")
BATCHER_WAITING_TOKENS = _gauge("headrace_batcher_waiting_tokens", "Prompt tokens in the queue.", "model", "tier")
BATCHER_RUNNING = _gauge("headrace_batcher_running_works", "Works on an executor.", "model")
BATCHER_WAIT = _histogram(
    "headrace_batcher_wait_seconds",
    "Time in the queue, one per dispatch.",
    "model",
    "tier",
    buckets=WAIT_BUCKETS,
)
BATCHER_REQUEUES = _counter(
    "headrace_batcher_requeues_total",
    "Works that went back to the queue, by cause: broken, refused or pushed.",
    "cause",
)
BATCHER_HOLDS = _counter(
    "headrace_batcher_holds_total",
    "Times that a work was held back for the executor, or the work, that has its prefix.",
    "model",
)
BATCHER_PUSHES = _counter(
    "headrace_batcher_pushes_total",
    "Works that were pushed out of an executor, by cause: interactive or memory.",
    "model",
    "cause",
)
BATCHER_WARM_UPS = _counter(
    "headrace_batcher_warm_ups_total", "Prefixes that were brought to an executor before they were asked for.", "model"
)
BATCHER_EXPIRED = _counter("headrace_batcher_expired_works_total", "Works answered because of their deadline.", "model")

KVCACHE_LOOKUPS = _counter(
    "headrace_kvcache_lookups_total", "Lookups, by result: hit, miss or refused.", "model", "result"
)
KVCACHE_LOOKUP = _histogram(
    "headrace_kvcache_lookup_seconds", "Time to match and reserve.", "model",
    buckets=(0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05),
)  # fmt: skip
KVCACHE_INDEXED = _gauge("headrace_kvcache_indexed_blocks", "Blocks in the prefix index.", "model", "executor")
KVCACHE_RESERVED = _gauge("headrace_kvcache_reserved_blocks", "Blocks reserved in the ledger.", "model", "executor")
KVCACHE_GAPS = _counter("headrace_kvcache_event_gaps_total", "Gaps in block events that made a snapshot.", "executor")
KVCACHE_TRUSTED = _gauge(
    "headrace_kvcache_trusted", "1 while what the index says of an executor is used.", "model", "executor"
)
KVCACHE_ACCURACY = _gauge(
    "headrace_kvcache_accuracy", "Share of promised blocks that the engine found lately.", "model", "executor"
)
KVCACHE_DISTRUSTS = _counter(
    "headrace_kvcache_distrusts_total", "Times that the index was no longer believed, or less of it.", "executor"
)
KVCACHE_FAULTS = _counter(
    "headrace_kvcache_faults_total", "Faults in the books that were found and put right; each is a bug."
)

EXECUTOR_WORKS = _counter(
    "headrace_executor_works_total", "Works that ended, by result (OK, or the reason).", "model", "result"
)
EXECUTOR_RUNNING = _gauge("headrace_executor_running_works", "Works in the batch.", "model")
EXECUTOR_WAITING = _gauge("headrace_executor_waiting_works", "Works that wait for the batch.", "model")
EXECUTOR_STEP = _histogram(
    "headrace_executor_step_seconds",
    "Time from one engine step to the next while works run.",
    "model",
    buckets=STEP_BUCKETS,
)
EXECUTOR_BATCH = _histogram("headrace_executor_batch_works", "Works per engine step.", "model", buckets=SIZE_BUCKETS)
EXECUTOR_TOKENS = _counter(
    "headrace_executor_tokens_total", "Tokens, by kind: prompt, cached or output.", "model", "kind"
)
EXECUTOR_USED_BLOCKS = _gauge("headrace_executor_used_blocks", "KV blocks of running works.", "model")
EXECUTOR_CACHED_BLOCKS = _gauge("headrace_executor_cached_blocks", "KV blocks kept for their prefix alone.", "model")
EXECUTOR_BLOCKS = _gauge("headrace_executor_total_blocks", "KV blocks in all.", "model")
EXECUTOR_PREEMPTIONS = _counter(
    "headrace_executor_preemptions_total",
    "Works that an engine took out of its batch by itself, for want of blocks: the ledger is there to prevent it.",
    "model",
)
EXECUTOR_ADAPTERS = _gauge("headrace_executor_resident_adapters", "Adapters in memory.", "model")
EXECUTOR_ADAPTER_ASKS = _counter(
    "headrace_executor_adapter_asks_total",
    "Works that asked for an adapter, by what they found: hit, load or failed.",
    "model",
    "result",
)
EXECUTOR_ADAPTER_LOAD = _histogram(
    "headrace_executor_adapter_load_seconds", "Time to bring an adapter into memory.", "model", buckets=WAIT_BUCKETS
)
EXECUTOR_ADAPTER_SWAP = _histogram(
    "headrace_executor_adapter_swap_seconds",
    "Time that a change of the active adapter took, where an engine runs one at a time.",
    "model",
    buckets=WAIT_BUCKETS,
)
EXECUTOR_COST = _counter("headrace_executor_cost_total", "What works cost at endpoints.", "model", "currency")
EXECUTOR_BREAKER = _gauge("headrace_executor_breaker_state", "Of endpoints: 0 closed, 1 half-open, 2 open.", "model")
EXECUTOR_COPIES = _gauge("headrace_executor_copies", "Copies of a model by state.", "model", "state")
EXECUTOR_LOAD = _histogram(
    "headrace_executor_load_seconds",
    "Time to load a model, until it has answered.",
    "model",
    buckets=(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)

PLACEMENT_LEADING = _gauge("headrace_placement_leading", "1 while this process leads.")
PLACEMENT_PLANS = _counter("headrace_placement_plans_total", "Plans written.")
PLACEMENT_PLAN = _histogram(
    "headrace_placement_plan_seconds",
    "Time to make a plan, without writing it.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
PLACEMENT_CHANGES = _counter(
    "headrace_placement_changes_total", "Placements written, by what was done: placed or withdrawn.", "change"
)
PLACEMENT_COPIES = _gauge("headrace_placement_copies", "Copies that are placed, of all versions.", "model")
PLACEMENT_FAILURES = _counter(
    "headrace_placement_load_failures_total", "Copies that an executor could not load.", "model"
)
PLACEMENT_UNPLACED = _gauge("headrace_placement_missing_replicas", "Replicas that no executor can hold.", "model")

PROCESS_BUILD = _gauge("headrace_process_build_info", "Always 1; the labels say what runs.",
                       "service", "instance", "version", "python", "grpcio")  # fmt: skip
PROCESS_LOOP_LAG = _gauge(
    "headrace_process_loop_lag_seconds",
    "The latest that the event loop woke a sleeper in the last ten seconds.",
)
PROCESS_TASKS = _gauge("headrace_process_tasks", "Tasks of asyncio that have not ended.")
PROCESS_SPANS = _counter("headrace_process_spans_total", "Spans that ended, by fate: exported or dropped.", "fate")
PROCESS_ETCD = _gauge("headrace_process_etcd_connected", "1 while the process keeps its announcement in etcd alive.")

METRICS: tuple[Metric, ...] = tuple(value for value in globals().values() if isinstance(value, Metric))
"""All of them."""
