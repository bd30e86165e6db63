"""What a command loads before it knows that it has something to do: help and usage errors stay instant."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

# Each takes from half a second to several seconds to import.
HEAVY = (
    "torch", "monai", "matplotlib", "pandas", "sklearn", "skimage", "torchvision",
    "scipy.ndimage", "scipy.sparse", "scipy.special", "scipy.stats",
)  # fmt: skip

COMMANDS = (
    "phantom", "synthesize", "predict", "evaluate", "robustness", "evaluate-autoencoder", "evaluate-synthesis",
    "import-published", "check", "split-tumors", "select-healthy", "export", "tables", "info",
)  # fmt: skip
HELP = ("--help", *(f"{command} --help" for command in COMMANDS))

ONE = "synthesize --ct ct.nii.gz --organ-mask mask.nii.gz --out out --generator handcrafted"
MANY = "synthesize --cases absent --out out --organ liver --generator handcrafted"
EVALUATE = "evaluate --predictions absent --labels absent --organ liver --out out"
ROBUSTNESS = "robustness --model absent --cases absent --organ liver --out out"
QUALITY = "evaluate-synthesis --real absent --synthetic absent --organ liver --out out"
NNUNET = "export nnunet Dataset501_Liver --cases absent"
USAGE_ERRORS = {
    "phantom out --cases many": "--cases",
    "phantom out --organs brain": "brain",
    "phantom README.md": "README.md",
    "synthesize --ct absent.nii.gz --organ-mask mask.nii.gz --organ liver --out out": "absent.nii.gz",
    f"{ONE} --organ livr": "livr",
    f"{ONE} --organ liver --size huge": "huge",
    f"{ONE} --organ liver --radius-mm 0": "--radius-mm",
    f"{ONE} --organ liver --tumors absent.yaml": "--tumors",
    f"{ONE} --organ liver --device gpu9": "gpu9",
    "synthesize --ct ct.nii.gz --organ-mask mask.nii.gz --out out --organ liver": "diffusion_liver_early",
    "synthesize --ct ct.nii.gz --organ-mask mask.nii.gz --out out --organ liver --model absent": "absent",
    "synthesize --replay absent.json --out out": "absent.json",
    MANY: "absent",
    f"{MANY} --size huge": "huge",
    "predict --ct absent.nii.gz --model absent --out out": "absent",
    "predict --ct docs --model docs --out out": "docs",
    "predict --ct absent --model absent --out out --overlap 2": "overlap",
    EVALUATE: "absent",
    "evaluate --predictions docs --labels docs --organ brain --out out": "",
    ROBUSTNESS: "absent",
    f"{ROBUSTNESS} --dimensions weight": "weight",
    "evaluate-autoencoder absent absent --out out": "absent",
    QUALITY: "absent",
    "evaluate-synthesis --real docs --synthetic docs --organ brain --out out": "",
    "import-published autoencoder absent.ckpt out": "absent.ckpt",
    "import-published segmenter unet absent.pt out --organ liver": "absent.pt",
    "check absent": "absent",
    "check ct.nii.gz absent": "absent",
    "check ct.nii.gz --out pairs.txt": ".json",
    "split-tumors absent out --organ liver": "absent",
    "split-tumors docs out --organ brain": "docs",
    "select-healthy absent --organ liver --out out.json": "absent",
    NNUNET: "absent",
    "export bundle absent out": "absent",
    "tables absent --out out": "absent",
    "info absent": "absent",
}

# Every command runs in a fork of one process, which has loaded the table of commands and nothing else.
PROBE = """
import contextlib, io, json, os, sys
from difftumor.cli import main
from difftumor.cli.app import COMMANDS
heavy, commands = json.load(sys.stdin)

def run(words):
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        try:
            main(words.split())
        except SystemExit as stop:
            return stop.code, error.getvalue(), [name for name in heavy if name in sys.modules]

results = {}
for words in commands:
    reading, writing = os.pipe()
    if not os.fork():
        os.write(writing, json.dumps(run(words)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as result:
        results[words] = json.load(result)
    os.wait()
print(json.dumps(results))
"""
Results = dict[str, tuple[int, str, list[str]]]
# One worker runs them all, once.
pytestmark = pytest.mark.xdist_group("imports")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """Exit code, error and heavy modules loaded of every command of this file."""
    folder = tmp_path_factory.mktemp("usage")
    for name in ("README.md", "ct.nii.gz", "mask.nii.gz"):
        (folder / name).touch()
    (folder / "docs").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps([HEAVY, [*HELP, *USAGE_ERRORS]]),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", HELP)
def test_help_loads_nothing_heavy(words, results):
    code, _, heavy = results[words]
    assert (code, heavy) == (0, [])


@pytest.mark.parametrize("words", USAGE_ERRORS)
def test_usage_errors_load_nothing_heavy(words, results):
    code, error, heavy = results[words]
    assert code in (1, 2)
    assert USAGE_ERRORS[words] in error
    assert heavy == []
