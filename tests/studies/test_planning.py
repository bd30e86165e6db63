"""Plans of all studies are made without PyTorch, as on a login node."""

import subprocess
import sys

import pytest

from tests.stages.tumor_cohort import SEGMENTATION, UNET

PROBE = """
import importlib, sys
for name in "ablation evidence.study on_the_fly sarcoma sarcoma_segmentation timesteps transfer.study".split():
    importlib.import_module(f"studies.{name}")
from studies.tumor_sources import main
assert main(sys.argv[1:]) == 0
print([name for name in ("torch", "monai", "pytorch_lightning") if name in sys.modules])
"""


@pytest.mark.slow
def test_no_plan_loads_pytorch(folder, tmp_path):
    words = (
        "plan", "--test", f"{folder}/cohort", "--out", f"{tmp_path}", *SEGMENTATION, *UNET,
        f"data.root={folder}/cohort", "synthesis.late_model=null",
        f"synthesis.early_model={folder}/diffusion_liver_early",
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "segmentation" in done.stdout
