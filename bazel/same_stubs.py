"""Compares the stubs just generated with the committed ones: `same_stubs.py GENERATED COMMITTED`."""

import sys
from pathlib import Path

GENERATED, COMMITTED = (Path(argument) for argument in sys.argv[1:3])


def stubs(root: Path) -> dict[str, bytes]:
    """The stubs under a folder, by path; Bazel puts GENERATED into COMMITTED, where it does not count."""
    found = (path for path in root.rglob("*_pb2*") if path.suffix in {".py", ".pyi"})
    if root is COMMITTED:
        found = (path for path in found if GENERATED not in path.parents)
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


generated, committed = stubs(GENERATED), stubs(COMMITTED)
stale = sorted(path for path in generated | committed if generated.get(path) != committed.get(path))
if stale or not generated:
    sys.exit("run `make proto`: " + (", ".join(stale) or "nothing was generated"))
print(f"{len(generated)} stubs are as committed")
