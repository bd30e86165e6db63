"""Names of devices."""

import subprocess
import sys

import pytest
import torch

from difftumor.errors import DeviceError
from difftumor.models.artifact import pick_device


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")
    for name in ("banana", "meta", "cuda:99"):
        with pytest.raises(DeviceError, match=name):
            pick_device(name)


def test_a_device_is_picked_without_what_predicts():
    code = "import sys, difftumor.models.artifact; print(sorted({'monai', 'scipy', 'nibabel'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
