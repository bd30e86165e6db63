"""``difftumor ablation``: what makes hand-crafted tumors teach."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

STUDIES = "studies"


def ablation(
    options: Annotated[
        list[str],
        typer.Argument(
            metavar="OPTION...",
            help="Options of stage 3: organ=NAME, data.root=PATH or data.healthy_root=PATH with healthy scans, and any "
            "other, such as trainer=gpu, backbone=swinunetr, synthesis.sizes.large=0.",
            show_default=False,
        ),
    ],
    test: Annotated[
        Path,
        typer.Option(help="Scans to test on, with labels: a list or a dataset.json.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/ablation"),
    seeds: Annotated[int, typer.Option(help="Trainings of each of the five.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps of each training, about.")] = 2000,
    overlap: Annotated[float, typer.Option(help="Of the windows in prediction.")] = 0.5,
    device: Annotated[str, typer.Option(help="Where tumors are predicted: auto, cpu, cuda.")] = "auto",
) -> None:
    r"""Train segmenters on hand-crafted tumors, without some of what makes their shape, and compare them.

    This is the ablation of Hu et al. (CVPR 2023), Table 4: tumors of all sizes with elastic deformation and blurred
    rims; without tiny ones; as ellipsoids; with sharp rims; as ellipsoids with sharp rims. No annotated tumor is
    trained on. OUT gets the table (ablation.csv, ablation.md), a figure (trainings.png), and report.html. The same
    command again goes on where it stopped.

    It trains, and so needs a checkout of the project: an installed package holds neither stages nor studies.

    Example: difftumor ablation --test data/test organ=liver data.healthy_root=data/healthy

    In minutes on a CPU: difftumor ablation --test data/test --seeds 1 --steps 400 'experiment=\[label_free,demo]'
    organ=liver trainer=cpu data.healthy_root=data/healthy
    """
    import subprocess
    import sys
    from importlib.util import find_spec

    from difftumor.errors import ConfigError

    if find_spec(STUDIES) is None:
        raise ConfigError(
            "difftumor ablation trains segmenters, for which this installation lacks stages and studies: clone the "
            "project and run pip install -e . in its folder."
        )
    given = {"test": test, "out": out, "seeds": seeds, "steps": steps, "overlap": overlap, "device": device}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    study = [sys.executable, "-m", f"{STUDIES}.ablation", *words, *options]
    raise typer.Exit(subprocess.run(study, check=False).returncode)
