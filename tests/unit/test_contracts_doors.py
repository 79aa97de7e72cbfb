"""What both doors tell of an answer that begins anew, and of one that is more than text."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.inference.v1 import inference_pb2 as pb
from libs.clock import ManualClock
from libs.lane.draft import Draft
from libs.lane.forwarder import Forwarder
from libs.lane.frame import Frame
from libs.lane.work import FinishReason, Note, Outcome
from libs.models.tokenizers import Tokenizers
from libs.rpc.call import Call
from libs.tasks import Tasks
from libs.telemetry.tracing import untraced
from services.admission.generation import Chunk, Finish, ToolStep
from services.admission.session import Session
from tests.unit.fronts import front
from tests.unit.lanes import HandStage
from tests.unit.letters import POLICY, SPEC, TENANT, tokenizer, tokens


class Door:
    """A session in front of a router by hand."""

    def __init__(self, tasks: Tasks, folder: Path) -> None:
        self.router, clock = HandStage(), ManualClock()
        forwarder = Forwarder("admission", lambda work, ready: ready[0], clock)
        forwarder.set_neighbours({"router-0": self.router})
        self.tokenizers = Tokenizers(lambda source, cache: tokenizer(), None, tasks)  # type: ignore[arg-type]
        self.tokenizers.want({"letters": SPEC})
        self.front = front(forwarder, lambda: POLICY, self.tokenizers, clock, tasks, folder)
        self.session = Session(self.front, untraced(), Call("/x", identity=TENANT), lambda: None)

    async def begin(self, number: int = 1) -> None:
        await self.tokenizers.loaded()
        request = pb.GenerateRequest(
            model="letters", prompt="hello", output_form=pb.OUTPUT_FORM_TEXT_AND_TOKEN_IDS,
            sampling=pb.Sampling(stop=["END"]),
        )  # fmt: skip
        await self.session.begin(pb.SessionGenerate(id=number, request=request))
        self.session.take()

    def say(self, text: str) -> None:
        lane, frame = self.router.lane, Draft()
        for work_id in lane.works:
            frame.add(work_id, lane.made[work_id], tokens(text))
            lane.made[work_id] += len(text)
        lane.sink.on_frame(Frame.of(frame))

    def note(self, note: Note) -> None:
        (work_id,) = self.router.lane.works
        self.router.lane.sink.on_note(work_id, note)
        if note.restart:
            self.router.lane.made[work_id] = 0

    def end(self) -> None:
        (work_id,) = self.router.lane.works
        self.router.lane.end(work_id, Outcome(FinishReason.STOP))

    def messages(self) -> list[pb.SessionResponse]:
        """Everything that is to be written now."""
        found = []
        while self.session._dirty:
            found.append(self.session.take())
        return found


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    tasks = Tasks()
    yield Door(tasks, tmp_path)
    await tasks.close()


async def test_a_restart_comes_alone_and_the_new_answer_behind_it(door: Door) -> None:
    await door.begin()
    door.note(Note("small@1"))
    door.say("Perhaps E")
    assert [list(m.texts) for m in door.messages()] == [["Perhaps "]]
    door.say("N")
    door.note(Note("letters@2", restart=True, tried=("small",)))
    door.say("Surely D")
    first, second = door.messages()
    assert (first.notes[0].restart, list(first.ids)) == (True, [])
    assert (list(second.texts), list(second.token_ids)) == (["Surely D"], tokens("Surely D"))
    assert second.notes[0].model_version == "letters@2"
    door.end()
    (last,) = door.messages()
    finish = last.ends[0].finish
    assert (finish.model, list(finish.tried)) == ("letters", ["small"])
    assert finish.usage.output_tokens == len("Perhaps ENSurely D"), "what is void was made all the same"


async def test_what_nobody_has_read_is_not_told(door: Door) -> None:
    await door.begin()
    door.say("Perhaps")
    door.note(Note(restart=True))
    door.note(Note(restart=True))
    door.say("Surely")
    door.end()
    first, second = door.messages()
    assert first.notes[0].restart
    assert list(second.texts) == ["Surely"]
    assert second.ends[0].finish.usage.output_tokens == len("PerhapsSurely")


async def test_a_complete_answer_does_not_begin_anew(door: Door) -> None:
    await door.begin()
    door.say("doneEND")
    door.note(Note(restart=True))
    door.end()
    (message,) = door.messages()
    assert list(message.texts) == ["done"]
    assert message.ends[0].finish.stop == "END"


async def test_parts_of_one_answer_do_not_hold_up_another(door: Door) -> None:
    await door.begin(1)
    await door.begin(2)
    finish = Finish(FinishReason.STOP, "", 1, 0, 1, 0.0, 0.0, 0.0, "letters")

    class Conversing:
        """An answer with everything in one chunk."""

        request_id = "r"

        def take(self) -> Chunk:
            steps = [ToolStep(1, "clock", "{}", "running"), ToolStep(1, "clock", "{}", "done", "noon")]
            return Chunk("Noon.", count=1, token_ids=[7], restart=True, tool_steps=steps, finish=finish)

    member = door.session._members[1]
    member.answer = answer = Conversing()
    door.say("other")
    member.changed(answer)
    first, second, third = door.messages()
    assert ([n.restart for n in first.notes], list(first.ids), list(first.texts)) == ([True], [2], ["other"])
    assert (list(second.ids), list(second.token_ids)) == ([1], [7])
    assert [note.tool_step.result for note in third.notes] == ["", "noon"]
    assert third.ends[0].finish.model == "letters"
