"""The Python environment as a Bazel repository: a toolchain with all of deploy/requirements.lock.

`make setup` leaves such an environment in .venv, stamped with the lock's digest. When the stamp fits, that
one is used; otherwise another is installed inside Bazel's output tree, which takes minutes and the package
index. Either way nothing outside the lock can be imported, the repository's own root included: a target
sees the sources it declares, no others.
"""

# Of .venv, relative to the repository's root; written by `make setup`: the lock's SHA-256, in hex.
_STAMP = ".venv/.lock-sha256"

_PACKAGES = "lib/python3.11/site-packages"

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
    stamp = ctx.path("%s/%s" % (root, _STAMP))
    if stamp.exists and ctx.read(stamp).split(" ")[0].strip() == digest:
        return stamp.dirname
    ctx.report_progress("installing deploy/requirements.lock; `make setup` would have been reused")
    own = ctx.path("installed")
    _run(ctx, [python, "-m", "venv", own], "no environment can be made (is python3-venv installed?)")
    pip = ["%s/bin/python" % own, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    _run(ctx, pip + ["--requirement", lock], "the lock cannot be installed", timeout = 1800)
    return own

def _python_environment_impl(ctx):
    python = ctx.which("python3.11")
    if not python:
        fail("python3.11 is not on the PATH")
    locked = _locked_environment(ctx, python, ctx.path(ctx.attr.lock))

    # A second, empty environment that borrows the packages. It leaves out the path files of the first: one of
    # them makes the working tree importable (the editable install), and every undeclared dependency with it.
    _run(
        ctx,
        ["%s/bin/python" % locked, "-m", "venv", "--without-pip", ctx.path("venv")],
        "no environment can be made",
    )
    ctx.file("venv/%s/packages.pth" % _PACKAGES, "%s/%s\n" % (locked, _PACKAGES))
    for script in ctx.path("%s/bin" % locked).readdir():
        link = "venv/bin/" + script.basename
        if not ctx.path(link).exists:
            ctx.symlink(script, link)

    ctx.file("python", _INTERPRETER.format(python = ctx.path("venv/bin/python3")))
    ctx.file("BUILD.bazel", _BUILD.format(interpreter = ctx.path("python")), executable = False)
    constants = _CONSTANTS.format(interpreter = ctx.path("python"), scripts = ctx.path("venv/bin"))
    ctx.file("environment.bzl", constants, executable = False)

python_environment = repository_rule(
    implementation = _python_environment_impl,
    attrs = {"lock": attr.label(mandatory = True, allow_single_file = True)},
    local = True,  # the stamp lies outside Bazel's sight: look again at every start of its server
    environ = ["PATH"],
    doc = "A Python toolchain, and the scripts that came with its packages, from a lock file.",
)
