"""The Python environment as a Bazel repository: a toolchain with all of deploy/requirements.lock.

`make setup` leaves such an environment in .venv, stamped with the lock's digest. When the stamp fits, that
one is used; otherwise another is installed inside Bazel's output tree, which takes minutes and the package
index. Either way nothing outside the lock can be imported, the repository's own root included: a target
sees the sources it declares, no others.
"""

_STAMP = ".venv/.lock-sha256"

# The interpreter of the toolchain. -P: a script's folder is no import root, or services/batcher/queue.py
# would stand in for Python's own queue.
_INTERPRETER = """#!/bin/sh
exec {python} -P "$@"
"""

_BUILD = """
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

py_runtime(
    name = "runtime",
    interpreter_path = "{interpreter}",
    python_version = "PY3",
)

py_runtime_pair(
    name = "runtimes",
    py3_runtime = ":runtime",
)

toolchain(
    name = "toolchain",
    toolchain = ":runtimes",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""

_CONSTANTS = '''"""Where the environment is."""

INTERPRETER = "{interpreter}"
SCRIPTS = "{scripts}"
'''

def _run(ctx, arguments, what, timeout = 60):
    result = ctx.execute(arguments, timeout = timeout)
    if result.return_code:
        fail("%s: %s%s" % (what, result.stdout, result.stderr))
    return result.stdout.strip()

def _locked_environment(ctx, python, lock):
    """The folder of an environment that holds what the lock says."""
    root = lock.dirname.dirname
    digest = _run(ctx, ["sha256sum", lock], "the lock cannot be read").split(" ")[0]
    stamp = root.get_child(_STAMP)
    if stamp.exists and ctx.read(stamp).strip() == digest:
        return root.get_child(".venv")
    ctx.report_progress("installing deploy/requirements.lock; `make setup` would have been reused")
    own = ctx.path("installed")
    _run(ctx, [python, "-m", "venv", own], "no environment can be made (is python3-venv installed?)")
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--requirement"]
    _run(ctx, [own.get_child("bin/python")] + pip + [lock], "the lock cannot be installed", timeout = 1800)
    return own

def _python_environment_impl(ctx):
    python = ctx.which("python3.11")
    if not python:
        fail("python3.11 is not on the PATH")
    packages = _locked_environment(ctx, python, ctx.path(ctx.attr.lock))

    # A second, empty environment that borrows the packages. It leaves out the path files of the first: one of
    # them makes the working tree importable (the editable install), and every undeclared dependency with it.
    _run(ctx, [python, "-m", "venv", "--without-pip", ctx.path("venv")], "no environment can be made")
    library = "lib/python3.11/site-packages"
    ctx.file("venv/%s/packages.pth" % library, str(packages.get_child(library)) + "\n")
    for script in packages.get_child("bin").readdir():
        if not ctx.path("venv/bin").get_child(script.basename).exists:
            ctx.symlink(script, "venv/bin/" + script.basename)

    interpreter = ctx.path("python")
    ctx.file("python", _INTERPRETER.format(python = ctx.path("venv/bin/python3")), executable = True)
    ctx.file("BUILD.bazel", _BUILD.format(interpreter = interpreter))
    ctx.file(
        "environment.bzl",
        _CONSTANTS.format(interpreter = interpreter, scripts = ctx.path("venv/bin")),
    )

python_environment = repository_rule(
    implementation = _python_environment_impl,
    attrs = {"lock": attr.label(mandatory = True, allow_single_file = True)},
    local = True,  # the stamp lies outside Bazel's sight: look again at every start of its server
    environ = ["PATH"],
    doc = "A Python toolchain, and the scripts that came with its packages, from a lock file.",
)
