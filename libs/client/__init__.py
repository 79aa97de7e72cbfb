"""The SDK of Headrace: asynchronous and typed.

    async with HeadraceClient("mesh:8400", api_key=key) as client:
        async for chunk in client.generate("smollm2", chat=[("user", "What is the capital of France?")]):
            print(chunk.text, end="")

In its wheel this package is `headrace_client`. It imports nothing of the mesh but the stubs of its API.
"""

from .answer import Answer
from .client import HeadraceClient, Session
from .errors import (
    ApprovalDenied,
    ApprovalUnknown,
    CallerError,
    Cancelled,
    CapacityError,
    ContractBroken,
    ContractUnknown,
    CredentialsInvalid,
    DeadlinePassed,
    HeadraceError,
    InternalError,
    ModelUnknown,
    NoExecutor,
    NotAllowed,
    NotSupported,
    Overloaded,
    QuotaExceeded,
    RequestInvalid,
    StageUnavailable,
    SwitchedOff,
    ToolFailed,
    Violation,
)
from .options import GenerateOptions, RetryPolicy, Tls
from .values import Chunk, Completion, Degradation, Finish, Model, Timings, TokenCount, ToolStep, Usage

__all__ = [
    "Answer",
    "ApprovalDenied",
    "ApprovalUnknown",
    "CallerError",
    "Cancelled",
    "CapacityError",
    "Chunk",
    "Completion",
    "ContractBroken",
    "ContractUnknown",
    "CredentialsInvalid",
    "DeadlinePassed",
    "Degradation",
    "Finish",
    "GenerateOptions",
    "HeadraceClient",
    "HeadraceError",
    "InternalError",
    "Model",
    "ModelUnknown",
    "NoExecutor",
    "NotAllowed",
    "NotSupported",
    "Overloaded",
    "QuotaExceeded",
    "RequestInvalid",
    "RetryPolicy",
    "Session",
    "StageUnavailable",
    "SwitchedOff",
    "Timings",
    "Tls",
    "TokenCount",
    "ToolFailed",
    "ToolStep",
    "Usage",
    "Violation",
]
