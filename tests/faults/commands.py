"""Every kind of command that writes, on files so small that it takes less than a second."""

from pathlib import Path

from tests.conftest import run
from tests.nifti import write_nifti
from tests.segmentation.makers import AFFINE, make_segmenter, mask, organ, scan

_CRAFTED = "--organ liver --generator handcrafted --size tiny"
COMMANDS = {
    "phantom": "phantom OUT --cases 1 --spacing 8 --organs liver",
    "synthesize": f"synthesize --ct cts/a.nii.gz --organ-mask masks/a.nii.gz {_CRAFTED} --out OUT",
    "synthesize --cases": f"synthesize --cases cts --organ-mask masks {_CRAFTED} --out OUT",
    "predict": "predict --ct cts --model segmenter --overlap 0.25 --device cpu --out OUT",
    "evaluate": "evaluate --predictions predictions --labels labels --organ liver --worst 0 --out OUT",
    "export nnunet": "export nnunet OUT/Dataset501_Liver --cases cases.csv",
    "export bundle": "export bundle segmenter OUT",
    "split-tumors": "split-tumors labels OUT --organ liver",
    "check": "check cts --out OUT.csv",
}


def write_inputs(folder: Path) -> Path:
    """Write two scans with a liver and a tumor each, their masks, labels and predictions, and a segmenter."""
    labels = organ()
    labels[8:11, 8:11, 6:9] = 2
    for seed, case in enumerate("ab"):
        scan(folder / "cts" / f"{case}.nii.gz", seed)
        mask(folder / "masks" / f"{case}.nii.gz")
        for name in ("labels", "predictions"):
            write_nifti(folder / name / f"{case}.nii.gz", labels, AFFINE)
    make_segmenter(folder / "segmenter")
    rows = [f"cts/{case}.nii.gz,labels/{case}.nii.gz" for case in "ab"]
    (folder / "cases.csv").write_text("\n".join(["image,label", *rows]))
    return folder


def call(command: str, out: Path) -> int:
    """Run a command in the folder of its inputs and return its exit status."""
    return run(*COMMANDS[command].replace("OUT", str(out)).split())
