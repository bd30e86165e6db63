"""Tumors read from annotated scans, copied into others, and replayed from the record."""

import json
import shutil

import numpy as np
import pytest

import difftumor as dt
from difftumor.datasets.cases import read_cases
from difftumor.errors import CaseListError, ConfigError, SynthesisError, VolumeError
from difftumor.files.checksums import sha256_of
from difftumor.scans.hounsfield import ScanWarning
from difftumor.scans.organs import get_organ
from difftumor.synthesis.scan.cohort import synthesize_cohort
from difftumor.synthesis.scan.options import ScanOptions, SynthesisOptions
from difftumor.synthesis.scan.record import read_record
from difftumor.synthesis.scan.sources import read_sources
from difftumor.synthesis.scan.synthesize import replay_files
from tests.conftest import contents
from tests.nifti import LPS, write_nifti
from tests.synthesis.makers import ball

pytestmark = pytest.mark.usefixtures("no_picture")
SHAPE = (36, 34, 32)
FINE, THICK = LPS @ np.diag([0.8, 0.8, 0.8, 1.0]), LPS @ np.diag([1.0, 1.0, 2.5, 1.0])
LIVER = get_organ("liver")


def annotated(tumor_hu=40.0, seed=0):
    """A liver of 100 HU with a tumor of about 5 voxels in radius, one of 7 voxels, and a stray voxel."""
    labels = ball(SHAPE, 14).astype(np.uint8)
    labels[9:19, 12:22, 12:22][ball((10, 10, 10), 4.9)] = 2
    labels[26, 17, 13:20] = 2
    labels[18, 24, 24] = 2
    ct = np.random.default_rng(seed).normal(0, 8, SHAPE) + np.array([-80, 100, tumor_hu])[labels]
    ct[0] = -1000
    return ct.astype(np.int16), labels


@pytest.fixture
def listed(tmp_path):
    """Two cases with tumors on different grids, and one that is stated to have none."""
    entries = []
    for name, affine, organs in (("a", FINE, ["liver"]), ("b", THICK, ["liver"]), ("c", FINE, [])):
        ct, labels = annotated(seed=len(entries))
        write_nifti(tmp_path / "source" / f"{name}.nii.gz", ct, affine)
        write_nifti(tmp_path / "source" / f"{name}_labels.nii.gz", labels if organs else labels * 0 + 1, affine)
        entries.append({"image": f"{name}.nii.gz", "label": f"{name}_labels.nii.gz", "tumor_organs": organs})
    content = {"labels": {"background": 0, "liver": 1, "liver_tumor": 2}, "training": entries}
    (tmp_path / "source" / "dataset.json").write_text(json.dumps(content))
    return tmp_path / "source"


@pytest.fixture
def host(tmp_path):
    """A liver of 60 HU, free of tumors."""
    ct = np.random.default_rng(9).normal(60, 8, (40, 40, 40))
    ct[0] = -1000
    write_nifti(tmp_path / "ct.nii.gz", ct.astype(np.int16), LPS)
    write_nifti(tmp_path / "liver.nii.gz", ball((40, 40, 40), 18).astype(np.uint8), LPS)
    return ScanOptions(ct=tmp_path / "ct.nii.gz", organ_mask=tmp_path / "liver.nii.gz")


def options(source, size="tiny", **more):
    tumor = dt.TumorSpec(generator="copy_paste", size=size, blur_mm=0)
    return SynthesisOptions(organ="liver", tumors=(tumor,), source=source, device="cpu", **more)


def made(source, host, out):
    return options(source).load().make_files(host.inputs("liver"), out=out)


def test_tumors_come_with_their_volume_and_their_parenchyma_whatever_the_grid(listed):
    sources, files = read_sources(read_cases(listed), LIVER, spacing_mm=(1.0, 1.0, 1.0))
    assert set(files) == {"a", "b"}
    voxels = int((annotated()[1][:20] == 2).sum())
    for tumor, voxel_mm3 in zip(sources.tumors, (0.8**3, 2.5), strict=True):
        assert tumor.mask.sum() == pytest.approx(voxels * voxel_mm3, rel=0.1)
        assert all(side % 2 for side in tumor.mask.shape)
        assert tumor.parenchyma_hu == pytest.approx(100, abs=1)
        assert tumor.hu[tumor.mask].mean() == pytest.approx(40, abs=6)  # partial volume at the rim
        assert tumor.sha256 == sha256_of(listed / f"{tumor.case}.nii.gz")


def test_scans_that_are_not_in_hu_are_copied_from_only_if_they_are_accepted(listed, tmp_path):
    ct, _ = annotated()
    write_nifti(listed / "a.nii.gz", np.clip(ct, -80, None), FINE)  # without air
    with pytest.raises(VolumeError, match=r"a\.nii\.gz looks windowed or scaled"):
        options(listed).load()
    with pytest.warns(ScanWarning, match=r"a\.nii\.gz looks windowed or scaled"):
        sources = options(listed, accept_hu=True).load().synthesizer.sources
    assert [tumor.case for tumor in sources.tumors] == ["a", "b"]


def test_a_copy_keeps_its_contrast_and_replays_from_the_record_alone(listed, host, tmp_path):
    report = made(listed, host, tmp_path / "out")
    (tumor,) = report.tumors
    assert tumor.contrast_hu == pytest.approx(-60, abs=8)
    content = json.loads((tmp_path / "out" / "record.json").read_text())
    assert set(content["sources"]) == {tumor.record.source.case}
    again = replay_files(tmp_path / "out" / "record.json", ScanOptions(), out=tmp_path / "again", overwrite=False)
    assert again.tumors[0].record == tumor.record
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_a_source_that_moved_is_named_and_one_that_changed_is_refused(listed, host, tmp_path):
    (tumor,) = made(listed, host, tmp_path / "out").tumors
    record, case = tmp_path / "out" / "record.json", tumor.record.source.case
    moved = listed.rename(tmp_path / "moved")
    replayed = replay_files(record, ScanOptions(), source=moved, out=tmp_path / "again", overwrite=False)
    assert replayed.tumors[0].record == tumor.record
    for name in ("ct.nii.gz", "labels.nii.gz", "lesions.nii.gz"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    shutil.copy(moved / f"{'ab'.replace(case, '')}_labels.nii.gz", moved / f"{case}_labels.nii.gz")
    with pytest.raises(SynthesisError, match=f"{case}_labels.nii.gz is not the file that the record was made from"):
        replay_files(record, ScanOptions(), source=moved, out=tmp_path / "third", overwrite=False)
    assert not (tmp_path / "third").exists()


def test_a_result_tells_whose_scans_it_shows(listed, host, tmp_path):
    (tumor,) = made(listed, host, tmp_path / "out").tumors
    shown = read_record(tmp_path / "out" / "record.json").scans
    assert shown == (host.ct.resolve(), (listed / f"{tumor.record.source.case}.nii.gz").resolve())


def test_what_does_not_go_together_is_refused(listed, tmp_path):
    with pytest.raises(ConfigError, match="generator copy_paste needs real tumors to copy: give --source"):
        options(None)
    with pytest.raises(ConfigError, match=r"\(--model\) does not go with copied tumors only"):
        options(listed, model="model")
    with pytest.raises(ConfigError, match=r"\(--source\) does not go with tumors of other generators"):
        SynthesisOptions(organ="liver", tumors=(dt.TumorSpec(generator="handcrafted"),), source=listed)
    with pytest.raises(ConfigError, match=r"None of the 2 tumors of .*source is large: they are tiny, small; ask for"):
        options(listed, size="large").load()
    with pytest.raises(CaseListError, match="nowhere"):
        options(tmp_path / "nowhere").load()


def test_tumors_of_another_source_are_not_taken_for_those_of_this_one(listed, host, tmp_path):
    cases = [("host", host.inputs("liver"))]

    def status():
        (outcome,) = synthesize_cohort(options(listed, "early").load, cases, out=tmp_path / "out")
        return outcome.status

    assert [status(), status()] == ["made", "done before"]
    content = json.loads((listed / "dataset.json").read_text())
    content["training"] = content["training"][1:]
    (listed / "dataset.json").write_text(json.dumps(content))
    assert status() == "failed"


def test_odd_cases_and_validation_cases_are_left_out_and_named(listed, host, tmp_path):
    content = json.loads((listed / "dataset.json").read_text())
    ct, labels = annotated()
    for name, odd in (("absent", labels * 0), ("full", np.minimum(labels, 1) * 2)):
        write_nifti(listed / f"{name}.nii.gz", ct, FINE)
        write_nifti(listed / f"{name}_labels.nii.gz", odd, FINE)
        content["training"].append({"image": f"{name}.nii.gz", "label": f"{name}_labels.nii.gz"})
    content["validation"] = [content["training"].pop(0)]
    (listed / "dataset.json").write_text(json.dumps(content))
    cases = read_cases(listed)
    sources, files = read_sources(cases, LIVER, spacing_mm=(1.0, 1.0, 1.0))
    assert set(files) == {"b"}
    validation, odd = sources.notes
    assert validation.endswith("source: 1 validation case left out.")
    assert "2 cases left out (absent, full). " in odd
    report = options(listed, "early").load().make_files(host.inputs("liver"), out=tmp_path / "out")
    assert report.notes == sources.notes
    given = [case for case in cases.cases if case.id == "a"]
    assert set(read_sources(cases, LIVER, spacing_mm=(1.0, 1.0, 1.0), only=given)[1]) == {"a"}
    alone = [case for case in cases.cases if case.id == "absent"]
    with pytest.raises(CaseListError, match=r"to copy: give cases that have some\. .*1 case left out \(absent\)"):
        read_sources(cases, LIVER, spacing_mm=(1.0, 1.0, 1.0), only=alone)


def test_a_source_without_tumors_is_refused(listed):
    cases = read_cases(listed)
    healthy = tuple(case for case in cases.cases if case.id == "c")
    with pytest.raises(CaseListError, match="has no labeled liver tumor of 8 voxels or more to copy"):
        read_sources(cases, LIVER, spacing_mm=(1.0, 1.0, 1.0), only=healthy)
