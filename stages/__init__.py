"""Training: one module per stage, each a LightningModule, a LightningDataModule and a Hydra entry point.

Needs the extra ``train``, and says so if it is missing.
"""

from importlib.util import find_spec

# What the extra installs, by the names under which it is imported.
EXTRA = ("hydra", "lpips", "pytorch_lightning", "submitit", "tensorboard", "torchmetrics")

if missing := [name for name in EXTRA if find_spec(name) is None]:
    raise ModuleNotFoundError(
        f"Training needs {', '.join(missing)}: install the extra with pip install -e '.[train]', or run make install.",
        name=missing[0],
    )
