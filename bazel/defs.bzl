"""The shapes that targets of this repository have: a library, a service, a folder of tests."""

# Without the lock among its inputs, a test would still count as passed after an upgrade.
_LOCK = "//deploy:requirements.lock"

_SERVICE_VISIBILITY = [
    "//services/console:__pkg__",  # those that compose services
    "//services/monolith:__pkg__",
    "//services/simulator:__pkg__",
    "//tests:__subpackages__",
]

def imports_test(deps, elsewhere = {}):
    """A test that the modules under this folder import nothing but what `deps` bring.

    Args:
      deps: the target of the modules.
      elsewhere: modules that another environment runs: to each, the packages that only that one has.
    """
    native.py_test(
        name = "imports_test",
        size = "small",
        srcs = ["//bazel:import_all.py"],
        args = [native.package_name().replace("/", ".")] +
               ["%s=%s" % (module, ",".join(packages)) for module, packages in elsewhere.items()],
        data = [_LOCK],
        main = "//bazel:import_all.py",
        deps = deps,
    )

def library(name, deps = [], data = [], elsewhere = {}, visibility = ["//visibility:public"]):
    """Every module under this folder, and a test that the declared dependencies are all that they import."""
    native.py_library(
        name = name,
        srcs = native.glob(["**/*.py"]),
        data = data + native.glob(["**/py.typed"]),
        visibility = visibility,
        deps = deps,
    )
    imports_test(
        deps = [":" + name],
        elsewhere = elsewhere,
    )

def service(name, deps = [], data = [], elsewhere = {}, binary = "main"):
    """A service: its modules, and the process `binary` out of its main.py. Services do not see each other."""
    library(
        name = name,
        data = data,
        elsewhere = elsewhere,
        visibility = _SERVICE_VISIBILITY,
        deps = deps + ["//services"],
    )
    native.py_binary(
        name = binary,
        srcs = ["main.py"],
        main = "main.py",
        visibility = ["//tests:__subpackages__"],
        deps = [":" + name],
    )

def pytest_files(deps, data = [], shared = {}, tags = {}):
    """One py_test for each test file of this folder.

    Args:
      deps: what the tests import.
      data: the files that they read.
      shared: test files whose helpers other tests import, by the importing file's name.
      tags: Bazel tags of single tests, by file name.
    """
    native.py_library(
        name = "support",
        testonly = True,
        srcs = native.glob(["*.py"], exclude = ["test_*.py"]),
        deps = deps,
    )
    for source in native.glob(["test_*.py"]):
        native.py_test(
            name = source[:-len(".py")],
            size = "medium",
            srcs = [source, "//bazel:pytest_file.py"] + shared.get(source, []),
            args = ["$(rootpath %s)" % source],
            data = data + [_LOCK, "//:pyproject.toml"],
            main = "//bazel:pytest_file.py",
            tags = tags.get(source, []),
            deps = [":support"],
        )
