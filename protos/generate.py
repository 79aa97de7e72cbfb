"""Generates the Python stubs beside their `.proto` files: `python protos/generate.py [OUT]`.

With OUT the stubs go there instead; `make check` compares them with the committed ones.
"""

import os
import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


def generate(out: Path) -> None:
    """Writes `_pb2.py`, `_pb2.pyi`, `_pb2_grpc.py` and `_pb2_grpc.pyi` of every proto under `out`.

    Raises RuntimeError when protoc refuses; protoc itself prints why.
    """
    # protoc looks for its mypy plugins on the PATH; they lie beside this Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    protos = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{ROOT}", f"-I{well_known}", f"--python_out={out}", f"--mypy_out={out}", *protos]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed")
    # grpc stubs only where there is a service: an empty _pb2_grpc.py is noise.
    with_service = [p for p in protos if "\nservice " in (ROOT / p).read_text()]
    arguments = ["protoc", f"-I{ROOT}", f"-I{well_known}", f"--grpc_python_out={out}", f"--mypy_grpc_out={out}"]
    if protoc.main([*arguments, *with_service]) != 0:
        raise RuntimeError("protoc failed")


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    target.mkdir(parents=True, exist_ok=True)
    generate(target)
