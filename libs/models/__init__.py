"""Model sources: where weights are, and how they become something that an engine loads.

`source.resolve` says what a source is, `tokenizer_files.tokenizer_files` gives its tokenizer (quickly, for
admission), and `prepared.prepare` the whole model (once per machine, for executors). Nothing here imports
OpenVINO into the caller's process: the heavy work runs in `python -m libs.models.prepare`.
"""
