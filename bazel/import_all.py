"""Imports every module of a package, in a place that has only what its target declares.

`import_all.py PACKAGE [MODULE=NAME,NAME...]...`: MODULE runs in another environment, the only one that has the
packages NAME. Here its import must fail for lack of one of them, and for nothing else; whatever else it imports
must be there.
"""

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

Elsewhere = dict[str, set[str]]
"""The modules of other environments, and to each the packages that only its environment has."""


def check_elsewhere(module: str, elsewhere: Elsewhere) -> None:
    """Holds a module of another environment to what is said of it."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in elsewhere[module]:
            raise
    else:
        sys.exit(f"{module} can be imported here: take it out of `elsewhere`")
    # It stopped at the first package that is not here: what its other import statements want is still unknown.
    source = Path(*module.split(".")).with_suffix(".py")
    for statement in ast.parse(source.read_text("utf-8"), str(source)).body:
        if isinstance(statement, ast.Import | ast.ImportFrom) and not_of(statement, elsewhere, elsewhere[module]):
            exec(compile(ast.Module([statement], []), str(source), "exec"), {"__name__": module})  # noqa: S102


def not_of(statement: ast.Import | ast.ImportFrom, elsewhere: Elsewhere, packages: set[str]) -> bool:
    """Whether a statement imports neither such a module nor such a package."""
    names = [statement.module or ""] if isinstance(statement, ast.ImportFrom) else [it.name for it in statement.names]
    return not any(name in elsewhere or name.partition(".")[0] in packages for name in names)


package = importlib.import_module(sys.argv[1])
elsewhere = {module: set(packages.split(",")) for module, _, packages in (a.partition("=") for a in sys.argv[2:])}
names = [found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
if unknown := elsewhere.keys() - set(names):
    sys.exit(f"{package.__name__} has no {', '.join(sorted(unknown))}: take it out of `elsewhere`")
for name in names:
    if name in elsewhere:
        check_elsewhere(name, elsewhere)
    else:
        importlib.import_module(name)
print(f"{package.__name__} and its {len(names) - len(elsewhere)} modules import; {len(elsewhere)} belong elsewhere")
