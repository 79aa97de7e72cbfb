"""Runs one test file under Bazel: what a py_test calls, with the file as its argument."""

import os
import sys

import pytest

arguments = ["-p", "no:cacheprovider", "--override-ini=testpaths=", "--rootdir=.", "-c", "pyproject.toml"]
if report := os.environ.get("XML_OUTPUT_FILE"):
    arguments.append(f"--junitxml={report}")
# Failing examples belong to the working tree; a sandbox has none, and its home is gone afterwards.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(os.environ["TEST_TMPDIR"], "hypothesis"))
sys.exit(pytest.main([*arguments, *sys.argv[1:]]))
