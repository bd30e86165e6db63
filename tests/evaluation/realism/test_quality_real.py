"""On real sarcomas: patients are more alike than the same tumors blurred, or shifted by 60 HU."""

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from scipy import ndimage

from difftumor.datasets.cases import Case, CaseList
from difftumor.evaluation.realism.distances import Sample, take_features
from difftumor.evaluation.realism.quality import QualitySettings, measure_quality
from difftumor.evaluation.realism.tumor_samples import CropSpec, tumor_crops
from difftumor.scans.nifti import read_ct, read_labels
from difftumor.scans.organs import OrganLabels
from tests.evaluation.realism.tumors import Network
from tests.nifti import write_nifti


def blurred(ct, mask, spacing):
    return np.where(mask, ndimage.gaussian_filter(ct, [2 / step for step in spacing]), ct)


CHANGES = {
    "as it is": lambda ct, mask, spacing: ct,
    "blurred": blurred,
    "60 HU brighter": lambda ct, mask, spacing: ct + 60 * mask,
}


@pytest.fixture(scope="module")
def sets(real_data, tmp_path_factory) -> dict[str, list[Sample]]:
    folder = tmp_path_factory.mktemp("sarcoma")
    found: dict[str, list[Sample]] = {name: [] for name in CHANGES}
    spec = CropSpec(size=48)
    for file in sorted((real_data / "sarcoma").glob("*/tumor.nii.gz")):
        ct, mask = read_ct(file.with_name("ct.nii.gz")), read_labels(file).data > 0
        # Tissue around a tumor stands for the organ.
        labels = np.where(mask, 2, ct.data > -200).astype(np.uint8)
        for name, change in CHANGES.items():
            hu = np.rint(change(ct.data, mask, ct.grid.spacing_mm)).astype(np.int16)
            image = write_nifti(folder / "ct.nii", hu, ct.grid.affine)
            case = Case(file.parent.name, image, write_nifti(folder / "map.nii", labels, ct.grid.affine))
            cases = CaseList((case,), {}, folder)
            crops = tumor_crops(case, cases, OrganLabels((1,), (2,)), spec)
            found[name] += [take_features(crop, (Network(),), slices=3) for crop in crops]
    return found


@pytest.mark.data
@pytest.mark.slow
def test_halves_of_the_patients_are_nearer_than_damaged_tumors(sets):
    real = sets["as it is"]
    assert len({sample.tumor.patient for sample in real}) == 16
    settings = QualitySettings(repeats=30, resamples=100)
    found = {
        name: {m.name.key: m for m in measure_quality(real, sets[name], (Network(),), settings).measurements}
        for name in CHANGES
    }
    # What each damage must move stands far above the halves; what it leaves alone does not.
    for key in ("hu_wasserstein", "hu_jensen_shannon", "contrast", "edge", "fid_of_slices", "kernel_of_slices"):
        assert found["60 HU brighter"][key].scale.farther >= 0.8, key
    for key in ("hu_jensen_shannon", "sd", "texture_contrast", "texture_homogeneity", "texture_correlation"):
        assert found["blurred"][key].scale.farther >= 0.8, key
    for key in ("texture_contrast", "texture_homogeneity", "texture_entropy", "sd", "diameter"):
        scale = found["60 HU brighter"][key].scale
        assert scale.real_synthetic.median == pytest.approx(scale.real_real.median, rel=0.1), key
    shares = [measurement.scale.farther for measurement in found["as it is"].values()]
    assert fmean(shares) == pytest.approx(0.5, abs=0.1)
    assert found["60 HU brighter"]["hu_wasserstein"].value == pytest.approx(60, abs=0.5)


@pytest.mark.data
@pytest.mark.slow
def test_noise_moves_texture_the_more_there_is_of_it(sets):
    def shifted(sample: Sample, levels: float) -> Sample:
        texture = replace(sample.tumor.texture, contrast=sample.tumor.texture.contrast + levels)
        return replace(sample, tumor=replace(sample.tumor, texture=texture))

    real = sets["as it is"]
    values = []
    for levels in (0.0, 1.0, 4.0):
        quality = measure_quality(real, [shifted(each, levels) for each in real], (), QualitySettings(repeats=2))
        values.append(next(m.value for m in quality.measurements if m.name.key == "texture_contrast"))
    assert values == pytest.approx([0.0, 1.0, 4.0])
