"""Do hand-crafted tumors look like their host? ``python -m studies.handcrafted --data PATH``.

Makes the same tumors three times in a synthetic liver and in real CT: with eq. (3) to the letter, with the texture
scaled to the tissue, and with the CT's noise kept; and compares their cores with the tissue that was there. Nothing is
trained.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from difftumor.reporting.picture_rows import Panel
from difftumor.reporting.pictures import axial_rows
from difftumor.reporting.tables import Row
from difftumor.scans.appearance import measure_appearance
from difftumor.scans.components import largest_component
from difftumor.scans.intensity import IntensityWindow
from difftumor.synthesis.scan.inputs import Scan
from difftumor.synthesis.scan.options import SynthesisOptions
from difftumor.synthesis.spec import TumorSpec
from studies.jobs.measurement import MeasuringStudy
from studies.jobs.results import Picture, write_results

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "eq. (3)": {"scale_texture": False},
    "scaled": {},
    "noise kept": {"host_noise_mm": 2.0},
}
# Muscle as the organ of the sarcoma patients: soft tissue, without what is thinner than 10 mm or near the tumor.
MUSCLE_HU, THIN_MM, APART_MM = (20.0, 90.0), 5.0, 8.0
LIVER = 5
# What is deeper in a tumor is its core: the rim's Gaussian has a σ of at most 1.2 mm.
CORE_MM = 3.0
WINDOW = IntensityWindow(-60.0, 160.0)
CT = NDArray[np.float32]
Mask = NDArray[np.bool_]
Lesions = NDArray[np.unsignedinteger]


@dataclass(frozen=True, eq=False)
class Tissue:
    """A CT, RAS, with one kind of tissue as the host of tumors.

    Args:
        name: For the table.
        ct_hu: (X, Y, Z).
        affine: (4, 4).
        host: Mask of the tissue.
        real: Mask of a real tumor in it; None for none.
        around: Mask of the tissue, also near the real tumor.
    """

    name: str
    ct_hu: CT
    affine: NDArray[np.floating[Any]]
    host: Mask
    real: Mask | None = None
    around: Mask = field(default_factory=lambda: np.zeros((), bool))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size."""
        x, y, z = (float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z


def synthetic_liver(sd_hu: float = 15.0) -> Tissue:
    """Return a ball of 110 ± 15 HU at 1 mm with the grain of a soft kernel, σ 0.7 mm, in fat."""
    shape = (96, 96, 96)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 0.7)
    x, y, z = np.ogrid[-48:48, -48:48, -48:48]
    ball = x**2 + y**2 + z**2 < 44**2
    ct_hu = (np.where(ball, 110, -80) + sd_hu * noise / noise.std()).astype(np.float32)
    return Tissue("synthetic liver", ct_hu, np.eye(4), ball)


def abdomen(folder: Path) -> Tissue:
    """Return the liver of ``ct.nii.gz`` and ``organs.nii.gz``."""
    ct_hu, affine = _read(folder / "ct.nii.gz")
    return Tissue("abdomen", ct_hu, affine, _read(folder / "organs.nii.gz")[0] == LIVER)


def sarcoma(folder: Path) -> Tissue:
    """Return the muscle of a patient's ``ct.nii.gz``, away from the real tumor of ``tumor.nii.gz``."""
    ct_hu, affine = _read(folder / "ct.nii.gz")
    tumor = _read(folder / "tumor.nii.gz")[0] > 0
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    smooth = ndimage.gaussian_filter(ct_hu, 3.0 / spacing)
    soft = (smooth > MUSCLE_HU[0]) & (smooth < MUSCLE_HU[1])
    thick = ndimage.distance_transform_edt(soft, sampling=spacing) > THIN_MM
    muscle = ndimage.distance_transform_edt(~thick, sampling=spacing) <= THIN_MM
    apart = ndimage.distance_transform_edt(~tumor, sampling=spacing) > APART_MM
    return Tissue(folder.name, ct_hu, affine, largest_component(muscle & apart), tumor, muscle)


def rows_of(tissue: Tissue, made: Mapping[str, tuple[CT, Lesions]]) -> Iterator[Row]:
    """Yield a row for the tissue, for each way to make its tumors, and for the real tumor."""
    for name, (ct_hu, lesions) in made.items():
        cores = _cores(lesions, tissue.spacing_mm)
        if name == next(iter(made)):
            yield {"scan": tissue.name, "what": "host", **_grain(tissue.ct_hu, cores)}
        inside = cores > 0
        alike = np.corrcoef(_fine(ct_hu, tissue)[inside], _fine(tissue.ct_hu, tissue)[inside])[0, 1]
        look = _edge(ct_hu, lesions, tissue.host, tissue.spacing_mm)
        yield {
            "scan": tissue.name, "what": name, **_grain(ct_hu, cores), **look, "noise_in_common": round(float(alike), 2)
        }  # fmt: skip
    if tissue.real is not None:
        real = tissue.real.astype(np.uint8)
        look = _edge(tissue.ct_hu, real, tissue.around, tissue.spacing_mm)
        grain = _grain(tissue.ct_hu, _cores(real, tissue.spacing_mm))
        yield {"scan": tissue.name, "what": "real tumor", **grain, **look}


def _grain(ct_hu: CT, cores: Lesions) -> dict[str, float]:
    """Return the deviation from each core's own mean, and its correlation from voxel to voxel along x, y and z."""
    varied = np.zeros_like(ct_hu)
    for number in np.unique(cores[cores > 0]):
        varied[cores == number] = ct_hu[cores == number] - ct_hu[cores == number].mean()
    lags = {}
    for axis, name in enumerate("xyz"):
        values, numbers = np.moveaxis(varied, axis, 0), np.moveaxis(cores, axis, 0)
        both = (numbers[1:] == numbers[:-1]) & (numbers[1:] > 0)
        lags[f"lag_1_{name}"] = round(float(np.corrcoef(values[1:][both], values[:-1][both])[0, 1]), 2)
    return {"sd_hu": round(float(varied[cores > 0].std()), 1), **lags}


def _edge(ct_hu: CT, lesions: Lesions, host: Mask, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Return the mean contrast and edge step of tumors."""
    looks = [
        measure_appearance(
            ct_hu, lesions == number, host & (lesions == 0), spacing_mm=spacing_mm, window=IntensityWindow()
        )
        for number in np.unique(lesions[lesions > 0])
    ]
    contrast, step = (np.nanmean([getattr(look, name) for look in looks]) for name in ("contrast_hu", "edge_step_hu"))
    return {"contrast_hu": round(float(contrast), 1), "edge_step_hu": round(float(step), 1)}


def _cores(lesions: Lesions, spacing_mm: Sequence[float]) -> Lesions:
    """Return the part of each tumor that is deeper than ``CORE_MM``."""
    deep = ndimage.distance_transform_edt(lesions > 0, sampling=spacing_mm) > CORE_MM
    cores: Lesions = np.where(deep, lesions, 0)
    return cores


def _fine(ct_hu: CT, tissue: Tissue) -> CT:
    """Return what a Gaussian takes away."""
    fine: CT = ct_hu - ndimage.gaussian_filter(ct_hu, [2.0 / step for step in tissue.spacing_mm])
    return fine


def _read(path: Path) -> tuple[CT, NDArray[np.floating[Any]]]:
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj, np.float32), image.affine


def make_tumors(tissue: Tissue, *, count: int, seed: int) -> dict[str, tuple[CT, Lesions]]:
    """Make the same tumors in every way; return the CT and their lesion map by name."""
    scan = Scan(tissue.ct_hu, tissue.affine, tissue.host, organ="liver")
    common = {"generator": "handcrafted", "count": count, "diameter_mm": {"uniform": [16, 32]}}
    made = {}
    for name, fields in VARIANTS.items():
        spec = TumorSpec.from_dict({**common, **fields}, where=name)
        result = SynthesisOptions(organ="liver", tumors=(spec,), seed=seed, device="cpu").load().make(scan)
        made[name] = (result.ct, result.lesions)
    return made


def run_study(arguments: argparse.Namespace) -> Path:
    """Make the tumors, measure them, and write the results.

    Returns:
        The page.
    """
    tissues = [synthetic_liver()]
    if arguments.data is not None:
        tissues.append(abdomen(arguments.data / "abdomen"))
        tissues += [sarcoma(arguments.data / "sarcoma" / patient) for patient in arguments.patients]
    rows: list[Row] = []
    pictures: dict[str, Picture] = {}
    for tissue in tissues:
        made = make_tumors(tissue, count=arguments.count, seed=arguments.seed)
        rows += rows_of(tissue, made)
        tumors = made["scaled"][1] > 0
        center = [int(c) for c in np.argwhere(tumors)[np.argmax(ndimage.distance_transform_edt(tumors)[tumors])]]
        volumes = {"Before": tissue.ct_hu, **{name.capitalize(): ct_hu for name, (ct_hu, _) in made.items()}}
        panels = [Panel(title=title, image=_around(volume, center)) for title, volume in volumes.items()]
        figure = axial_rows(
            {tissue.name: panels},
            centers=[[size // 2 for size in panels[0].image.shape]],
            spacing_mm=tissue.spacing_mm,
            window_hu=(WINDOW.low_hu, WINDOW.high_hu),
            column_inches=2.5,
        )
        pictures[tissue.name.replace(" ", "_")] = Picture(figure, f"The same tumor in the {tissue.name}.")
    return write_results(
        arguments.out,
        "handcrafted",
        title="Hand-crafted tumors beside their host",
        introduction=[
            f"The core of a tumor is what lies deeper than {CORE_MM:g} mm; of the host, the same voxels before. SD: "
            "from each core's own mean. Lag 1: correlation of neighbors along x, y and z. Noise in common: of what a "
            "Gaussian with σ 2 mm takes away, the correlation of after and before."
        ],
        rows=[{key: row.get(key) for key in rows[1]} for row in rows],
        pictures=pictures,
        details={"command": arguments.command, "tumors per scan": arguments.count, "seed": arguments.seed},
    )


def _around(volume: CT, center: Sequence[int], half: int = 36) -> CT:
    padded = np.pad(volume, half, mode="edge")
    x, y, z = center
    return padded[x : x + 2 * half, y : y + 2 * half, z + half : z + half + 1]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder with abdomen/ and sarcoma/; without: the synthetic liver")
    parser.add_argument("--patients", nargs="*", default=["STS_001", "STS_006", "STS_032"], help="of sarcoma/")
    parser.add_argument("--count", type=int, default=4, help="tumors per scan (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the tumors (0)")


STUDY = MeasuringStudy("handcrafted", __doc__, run_study, _add_options)
main = STUDY.main


if __name__ == "__main__":
    sys.exit(main())
