"""Generates the stubs from the protos, with the generator that people use too."""

load("@python//:environment.bzl", "INTERPRETER", "SCRIPTS")

def _generated_stubs_impl(ctx):
    out = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        outputs = [out],
        inputs = ctx.files.srcs + ctx.files.generator + ctx.files.lock,
        # protoc finds its plug-ins, which are scripts of the environment, on the PATH.
        command = 'PATH="$1:$PATH" exec "$2" "$3" "$4"',
        arguments = [SCRIPTS, INTERPRETER, ctx.file.generator.path, out.path],
        mnemonic = "PythonStubs",
        progress_message = "Generating stubs of %d protos" % len(ctx.files.srcs),
    )
    return [DefaultInfo(files = depset([out]), runfiles = ctx.runfiles([out]))]

generated_stubs = rule(
    implementation = _generated_stubs_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".proto"], mandatory = True),
        "generator": attr.label(allow_single_file = [".py"], mandatory = True),
        "lock": attr.label(allow_single_file = True, default = "//deploy:requirements.lock"),
    },
    doc = "A folder with _pb2.py, _pb2.pyi, _pb2_grpc.py and _pb2_grpc.pyi of all `srcs`.",
)
