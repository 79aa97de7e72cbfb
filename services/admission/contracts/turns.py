"""The turns of a conversation that are the mesh's own: what a model is told of tools, schemas and results. Pure.

What a tool or a person says goes in as JSON strings whose tags are cut, so that it cannot pass for anything else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from libs.errors import Violation
from services.admission.contracts import strict_json
from services.admission.contracts.calls import CLOSING, OPENING, RESULT_CLOSING, RESULT_OPENING
from services.admission.contracts.offer import Offer
from services.admission.request import Turn


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one call."""

    tool: str
    """"" where what stood there was no call."""
    text: str
    failed: bool = False


def opening(chat: Sequence[Turn], offers: Iterable[Offer], schema: str) -> Sequence[Turn]:
    """The chat with a system turn that says which tools there are, and what the answer is to look like.

    Args:
        schema: "" where nothing is to be said about it.
    """
    told = [_tools(tools)] if (tools := list(offers)) else []
    if schema:
        which = "Your final answer is" if tools else "Answer with"
        told.append(f"{which} JSON alone, which fits this JSON schema:\n{schema}")
    if not told:
        return chat
    if chat and chat[0].role == "system":
        return [Turn("system", "\n\n".join([chat[0].content, *told])), *chat[1:]]
    return [Turn("system", "\n\n".join(told)), *chat]


def results(answer: str, results: Sequence[Result], last: bool) -> Sequence[Turn]:
    """What the model said, and what its calls brought.

    Args:
        last: It has one more step: nothing is called any more.
    """
    told = "\n".join(map(_response, results))
    return [Turn("assistant", answer), Turn("user", f"{told}\nAnswer now, without further calls." if last else told)]


def repair(answer: str, violations: Sequence[Violation]) -> Sequence[Turn]:
    """What the model said, and what is wrong with it."""
    wrong = "\n".join(f"- {violation.subject}: {violation.description}" for violation in violations)
    told = f"This answer is not valid:\n{wrong}\nAnswer again, with valid JSON and nothing else."
    return [Turn("assistant", answer), Turn("user", told)]


def _tools(offers: Sequence[Offer]) -> str:
    lines = [
        strict_json.dumps(
            {
                "type": "function",
                "function": {
                    "name": offer.tool.name,
                    "description": offer.tool.description,
                    "parameters": strict_json.loads(offer.tool.arguments_schema or '{"type": "object"}'),
                },
            }
        )
        for offer in offers
    ]
    return "\n".join(
        [
            "# Tools",
            "",
            "You may call these functions. Each line describes one, with the JSON schema of its arguments:",
            "<tools>",
            *lines,
            "</tools>",
            "",
            "To call a function, write a JSON object with its name and arguments between these tags:",
            OPENING,
            '{"name": "the function", "arguments": {"its": "arguments"}}',
            CLOSING,
            f"The results come between {RESULT_OPENING} tags. Call nothing that is not listed.",
        ]
    )


def _response(result: Result) -> str:
    said = {"name": result.tool, "error" if result.failed else "content": result.text}
    # As escapes of JSON, which change nothing of what is said: no text of a tool ends its own result.
    text = strict_json.dumps(said).replace("<tool_", "\\u003ctool_").replace("</tool_", "\\u003c/tool_")
    return f"{RESULT_OPENING}\n{text}\n{RESULT_CLOSING}"
