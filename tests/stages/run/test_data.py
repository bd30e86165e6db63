"""Cases kept on disk or in memory change no weight of any stage, and are read once."""

import numpy as np
import pytest

from difftumor.datasets import transforms
from difftumor.datasets.caching import CachedOnDisk
from difftumor.datasets.cases import Case, CaseList
from difftumor.errors import ConfigError, VolumeError
from difftumor.scans.hounsfield import ScanWarning
from difftumor.scans.intensity import IntensityWindow, Normalization
from difftumor.scans.organs import get_organ
from stages.autoencoder import train as autoencoder
from stages.autoencoder.data import AutoencoderReader
from stages.diffusion import train as diffusion
from stages.diffusion.data import TumorReader
from stages.diffusion.options import LesionRules
from stages.run.run import run_stage
from stages.segmentation import train as segmentation
from stages.segmentation.cases import Origin
from stages.segmentation.data import SegmentationReader
from tests.nifti import write_nifti
from tests.stages.builds import KINDS

BUILDS = {"autoencoder": autoencoder.build, "diffusion": diffusion.build, "segmentation": segmentation.build}
OTHERS = ("autoencoder", "diffusion")
FIXTURES = {"autoencoder": "tiny_config", "diffusion": "tiny_diffusion", "segmentation": "tiny_segmentation"}


@pytest.mark.parametrize("stage", ["segmentation", *(pytest.param(s, marks=pytest.mark.slow) for s in OTHERS)])
def test_cases_kept_on_disk_give_the_same_weights(request, tmp_path, monkeypatch, stage):
    compose = request.getfixturevalue(FIXTURES[stage])
    reads = []
    read_ct = transforms.read_ct
    monkeypatch.setattr(transforms, "read_ct", lambda path, **more: (reads.append(path), read_ct(path, **more))[1])

    def weights(name, *options):
        reads.clear()
        config = compose(f"name={name}", f"artifact={tmp_path}/{name}", *options)
        artifact = run_stage(config, KINDS[stage], BUILDS[stage])
        return (artifact / "model.safetensors").read_bytes(), len(reads)

    on_disk = f"data.cache_dir={tmp_path}/cache"
    plain, _ = weights("plain", "data.cache_rate=0")
    cold, cold_reads = weights("cold", on_disk, "data.cache_rate=auto")
    warm, warm_reads = weights("warm", on_disk, "data.cache_rate=0.5")
    assert plain == cold == warm
    assert cold_reads > warm_reads
    if stage != "diffusion":  # its hosts and held-out tumors are cut once per run, and not kept
        assert warm_reads == 0


def test_training_and_validation_share_no_file(tiny_segmentation, tmp_path):
    run_stage(tiny_segmentation(f"data.cache_dir={tmp_path}/cache"), KINDS["segmentation"], segmentation.build)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 5 + 2


@pytest.mark.parametrize("value", ["-0.5", "2", "most", "true"])
def test_a_wrong_share_is_named(tiny_segmentation, value):
    with pytest.raises(ConfigError, match=r"data\.cache_rate is .*: give auto, or a share"):
        run_stage(tiny_segmentation(f"data.cache_rate={value}"), KINDS["segmentation"], segmentation.build)


def test_a_cache_in_the_place_of_a_file_is_named(tiny_segmentation, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data\.cache_dir .*is a file"):
        run_stage(tiny_segmentation(f"data.cache_dir={tmp_path}/file"), KINDS["segmentation"], segmentation.build)


def _reader(stage, case, **more):
    listed, organ = CaseList((case,), {"liver": 1, "liver_tumor": 2}, case.image), get_organ("liver")
    same = {"crop": (4, 4, 4), "spacing_mm": (1.0, 1.0, 1.0), **more}
    if stage == "autoencoder":
        return AutoencoderReader(label_names=listed.label_names, **same)
    if stage == "diffusion":
        rules = LesionRules(stage="early", early_radius_mm=10, early_includes_limit=True, minimum_voxels=1)
        return TumorReader(cases=listed, organ=organ, rules=rules, **same)
    origins = {case: Origin(source=listed, healthy=False, made=False)}
    return SegmentationReader(origins=origins, organ=organ, normalization=Normalization(IntensityWindow()), **same)


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion", "segmentation"])
def test_a_scan_that_a_run_accepts_is_refused_by_another_with_the_same_cache(stage, tmp_path):
    labels = write_nifti(tmp_path / "labels.nii", np.ones((6, 6, 6), np.uint8))
    case = Case("a", write_nifti(tmp_path / "ct.nii", np.full((6, 6, 6), 7, np.int16)), labels)
    accepting, strict = _reader(stage, case, accept_hu=True), _reader(stage, case)
    with pytest.warns(ScanWarning, match=r"ct\.nii looks windowed or scaled"):
        CachedOnDisk(accepting.whole, accepting.about, tmp_path / "cache")(case)
    with pytest.raises(VolumeError, match="accept_hu=true"):
        CachedOnDisk(strict.whole, strict.about, tmp_path / "cache")(case)
    assert "accept_hu" not in strict.about(case)  # caches of earlier versions stay in use
