"""What ``import difftumor as dt`` offers, from arrays and from files."""

import ast
import doctest
import json
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import difftumor as dt
from difftumor.errors import ConfigError, GridMismatchError, OrganError, SynthesisError, VolumeError, counted
from difftumor.scans.nifti import read_ct
from difftumor.synthesis.scan.record import FILES, read_record
from tests.conftest import REPOSITORY, contents, run
from tests.documentation import prepare_prediction
from tests.nifti import write_nifti
from tests.synthesis.makers import ball

SHAPE = (30, 28, 24)
AFFINE = np.diag([-1.0, -1.0, 1.5, 1.0])
TUMORS = dt.TumorSpec(generator="handcrafted", size="tiny", count=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    values = np.random.default_rng(0).normal(100, 10, SHAPE)
    values[:2] = -1000
    write_nifti(folder / "ct.nii.gz", values.astype(np.int16), AFFINE)
    write_nifti(folder / "liver.nii.gz", ball(SHAPE, 11).astype(np.uint8), AFFINE)
    return folder


@pytest.fixture(scope="module")
def scan(files):
    return dt.read_scan(str(files / "ct.nii.gz"), organ_mask=str(files / "liver.nii.gz"), organ="liver")


def arrays(files):
    return [np.asanyarray(nib.load(files / f"{name}.nii.gz").dataobj) for name in ("ct", "liver")]


def test_every_name_is_there_and_known_to_type_checkers():
    assert [name for name in dir(dt) if not hasattr(dt, name)] == []
    tree = ast.parse((REPOSITORY / "difftumor" / "__init__.py").read_text())
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = {a.asname: n.module for n in typed.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert imports == dt._HOMES
    with pytest.raises(AttributeError, match="no attribute 'tumour'"):
        dt.tumour  # noqa: B018


@pytest.fixture(scope="module")
def inputs_of_examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    prepare_prediction(folder)
    return folder


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("name", ["difftumor", *dt._HOMES])
def test_every_name_has_an_example_that_runs(name, inputs_of_examples, monkeypatch):
    monkeypatch.chdir(inputs_of_examples)
    text = (dt if name == "difftumor" else getattr(dt, name)).__doc__
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_import_alone_loads_nothing():
    code = "import sys, difftumor; print([m for m in ('numpy', 'torch', 'nibabel', 'yaml') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=REPOSITORY).strip() == "[]"


@pytest.mark.usefixtures("no_picture")
def test_command_and_function_write_the_same(files, scan, tmp_path):
    words = ["--ct", files / "ct.nii.gz", "--organ-mask", files / "liver.nii.gz", "--organ", "liver", "--seed", 3]
    words += ["--generator", "handcrafted", "--size", "tiny", "--count", 2, "--device", "cpu"]
    assert run("synthesize", *words, "--out", tmp_path / "command") == 0
    result = dt.synthesize(scan, TUMORS, seed=3, device="cpu")
    report = result.save(str(tmp_path / "function"))
    assert contents(tmp_path / "function") == contents(tmp_path / "command")
    assert set(contents(tmp_path / "function")) == set(FILES)
    assert report.folder == tmp_path / "function"
    with pytest.raises(ConfigError, match="already holds"):
        result.save(tmp_path / "function")
    result.save(tmp_path / "function", overwrite=True)


@pytest.mark.usefixtures("no_picture")
def test_arrays_give_what_files_give_and_can_be_saved(files, scan, tmp_path):
    ct, mask = arrays(files)
    before = ct.copy()
    made = dt.synthesize(dt.Scan(ct, AFFINE, mask, organ="liver"), TUMORS, seed=3)
    same = dt.synthesize(scan, [TUMORS], seed=3)
    np.testing.assert_array_equal(ct, before)
    assert made.records == same.records
    assert "array(" not in repr(made)
    for name in ("ct", "labels", "lesions"):
        np.testing.assert_array_equal(getattr(made, name), getattr(same, name))
    assert set(np.unique(made.labels)) == {0, 1, 2}
    assert set(np.unique(made.lesions)) == {0, 1, 2}
    assert (made.ct != ct)[made.lesions > 0].mean() > 0.8

    made.save(tmp_path / "out")
    written = read_ct(tmp_path / "out" / "ct.nii.gz")
    np.testing.assert_array_equal(written.data, made.ct)
    np.testing.assert_array_equal(written.grid.affine, AFFINE)
    assert written.stored is not None
    assert written.stored.values.dtype == ct.dtype
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out" / "lesions.nii.gz").dataobj), made.lesions)
    assert json.loads((tmp_path / "out" / "record.json").read_text())["inputs"] is None
    with pytest.raises(SynthesisError, match="its scan came from arrays, not from files"):
        read_record(tmp_path / "out" / "record.json")
    with pytest.raises(SynthesisError, match=r"There is no file at .*gone\.json: give the record\.json"):
        read_record(tmp_path / "gone.json")


@pytest.mark.usefixtures("no_picture")
def test_floats_stay_floats(files, tmp_path):
    ct, mask = arrays(files)
    dt.synthesize(dt.Scan(ct + 0.25, AFFINE, mask, organ="liver"), TUMORS).save(tmp_path)
    written = read_ct(tmp_path / "ct.nii.gz")
    assert written.stored is not None
    assert written.stored.values.dtype == np.float64
    assert set(np.unique(written.data[:3] % 1)) == {0.25}


def test_tumors_that_are_there_and_segments(files):
    ct, mask = arrays(files)
    tumor = ball(SHAPE, 3)
    scan = dt.Scan(ct, AFFINE, mask, organ="liver", tumor_mask=tumor, segments=mask.astype(np.int64) * 4)
    assert not (scan.organ_mask & tumor).any()
    assert scan.segments.dtype == np.uint8
    made = dt.synthesize(scan, TUMORS)
    assert (made.labels[tumor] == 2).all()
    assert (made.lesions[tumor] == 0).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ct_hu": np.zeros((4, 4))}, VolumeError, r"the CT is float64 of shape \(4, 4\): give numbers of shape"),
        ({"ct_hu": np.zeros(SHAPE, bool)}, VolumeError, "the CT is bool"),
        ({"ct_hu": np.full(SHAPE, np.nan)}, VolumeError, "the CT holds NaN"),
        ({"ct_hu": np.random.default_rng(0).random(SHAPE)}, VolumeError, "looks windowed or scaled"),
        ({"affine": np.eye(3)}, VolumeError, "affine of the CT is not a 4 × 4 matrix"),
        ({"affine": None}, VolumeError, "affine of the CT is not a 4 × 4 matrix"),
        ({"affine": np.zeros((4, 4))}, VolumeError, "affine of the CT is singular"),
        ({"organ_mask": np.ones((2, 2, 2))}, GridMismatchError, r"organ_mask has the shape \(2, 2, 2\), the CT \(30,"),
        ({"organ_mask": np.full(SHAPE, 0.5)}, VolumeError, "organ_mask is not a mask of whole numbers"),
        ({"tumor_mask": np.full(SHAPE, np.nan)}, VolumeError, "tumor_mask is not a mask of whole numbers"),
        ({"organ_mask": np.zeros(SHAPE)}, OrganError, "organ_mask holds no voxel of the liver"),
        ({"tumor_mask": np.ones(SHAPE)}, OrganError, "organ_mask is all tumor"),
        ({"segments": np.full(SHAPE, 0.5)}, VolumeError, "segments is float64 or below 0"),
        ({"organ": "livr"}, OrganError, "did you mean liver"),
    ],
)
def test_what_cannot_be_a_scan_is_refused(files, changes, error, message):
    ct, mask = arrays(files)
    with pytest.raises(error, match=message):
        dt.Scan(**{"ct_hu": ct, "affine": AFFINE, "organ_mask": mask, "organ": "liver", **changes})


def test_options_that_contradict_each_other_are_refused(files, scan):
    with pytest.raises(ConfigError, match="not both"):
        dt.read_scan(files / "ct.nii.gz", organ_mask="a.nii.gz", labels="b.nii.gz", organ="liver")
    with pytest.raises(ConfigError, match=r"^model \(--model\) does not go with hand-crafted tumors only"):
        dt.synthesize(scan, TUMORS, model="checkpoints/diffusion_liver_early")
    with pytest.raises(ConfigError, match="size and diameter_mm contradict each other"):
        dt.TumorSpec(size="small", diameter_mm=9)
    with pytest.raises(ConfigError, match="labels is an array and predictions a path"):
        dt.evaluate("predictions", np.zeros(SHAPE, np.uint8), organ="liver")  # type: ignore[call-overload]


def test_errors_name_the_argument_beside_the_option(files):
    """From Python nobody knows what --organ-label is."""
    for given, named in (
        ({}, "organ_mask (--organ-mask)"),
        ({"labels": files / "liver.nii.gz"}, "organ_labels (--organ-label)"),
        ({"labels": files / "liver.nii.gz", "organ_labels": (0,)}, "organ_labels (--organ-label)"),
        ({"organ_mask": "a.nii.gz", "labels": "b.nii.gz"}, "labels (--labels)"),
    ):
        with pytest.raises(ConfigError, match=re.escape(named)):
            dt.read_scan(files / "ct.nii.gz", organ="liver", **given)


@pytest.mark.parametrize("name", ["../x", "a/b", ".."])
def test_a_prediction_is_not_saved_outside_its_folder(tmp_path, name, scan):
    prediction = dt.Prediction(
        ct=scan.ct, labels=np.zeros(SHAPE, np.uint8), tumor_probability=np.zeros(SHAPE, np.float16)
    )
    with pytest.raises(ConfigError, match="cannot name files: give one without slashes"):
        prediction.save(tmp_path / "out", name=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "text"), [(0, "0 copies"), (1, "1 copy"), (2, "2 copies")])
def test_numbers_agree_with_their_nouns(number, text):
    assert counted(number, "copy") == text
