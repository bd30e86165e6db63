"""The three entry points in sequence, through their artifacts, on the phantom: the demo with a few steps each."""

import json
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from difftumor.datasets.cases import read_cases
from difftumor.errors import ConfigError, TrainingError
from difftumor.models.artifact_config import read_config
from stages.demo.folder import DemoFolder
from stages.demo.run import OWN_SCAN, Step, main, own_scan, run_demo
from tests.conftest import REPOSITORY, read_rows
from tests.documentation import commands
from tests.exchange.published.files import autoencoder_entries, diffusion_checkpoint, lightning, saved

# One process trains for all tests of this file.
pytestmark = pytest.mark.xdist_group("demo")
TINY = [
    "trainer.limit_train_batches=2",
    "trainer.max_epochs=1",
    "trainer.log_every_n_steps=1",
    "data.crop=[32,32,32]",
    "seed=1",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = DemoFolder(tmp_path_factory.mktemp("demo") / "out")
    words = [word for override in TINY for word in ("--override", override)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # of the commands: other tests run beside them
        assert main(["--out", str(folder.path), *words]) == 0
        yield folder


@pytest.mark.slow
def test_every_stage_names_its_parent(finished):
    autoencoder, diffusion = read_config(finished.autoencoder), read_config(finished.diffusion)
    segmenter = read_config(finished.segmenter)
    assert autoencoder.complete
    assert diffusion.complete
    assert segmenter.complete
    assert diffusion.parents["autoencoder"].identity == autoencoder.identity
    assert diffusion.identity in {parent.identity for parent in segmenter.parents.values()}


@pytest.mark.slow
def test_synthesis_changes_the_scan_only_near_its_tumors(finished):
    record = json.loads((finished.synthesis / "record.json").read_text())
    assert len(record["tumors"]) == 2
    lesions = np.asarray(nib.load(finished.synthesis / "lesions.nii.gz").dataobj)
    labels = np.asarray(nib.load(finished.synthesis / "labels.nii.gz").dataobj)
    assert set(np.unique(lesions)) == {0, 1, 2}
    assert np.array_equal(labels == 2, lesions > 0)
    after = nib.load(finished.synthesis / "ct.nii.gz")
    before = nib.load(record["inputs"]["ct"][0]["path"])
    changed = np.asarray(after.dataobj) != np.asarray(before.dataobj)
    assert 0 < changed.mean() < 0.05
    assert after.header["datatype"] == before.header["datatype"]
    assert np.array_equal(after.affine, before.affine)


@pytest.mark.slow
def test_every_test_case_is_scored(finished):
    rows = read_rows(finished.evaluation / "cases.csv")
    assert len(rows) == 4
    assert all(0 <= float(row["organ_dsc"]) <= 1 for row in rows)


@pytest.mark.slow
def test_report_is_one_file_without_requests(finished):
    page = finished.report.read_text()
    assert page.count("data:image/png;base64,") >= 9
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    for title in ("Stage 1", "Stage 2", "Stage 3", "Tumors in a healthy phantom", "What it took"):
        assert title in page


@pytest.mark.slow
def test_second_call_trains_nothing(finished, capfd):
    before = {path: path.stat().st_mtime_ns for path in finished.checkpoints.rglob("*.safetensors")}
    assert main(["--out", str(finished.path)]) == 0
    assert capfd.readouterr().out.count("Done before") == 5
    assert before == {path: path.stat().st_mtime_ns for path in finished.checkpoints.rglob("*.safetensors")}


def _scan(tmp_path, labels):
    rng = np.random.default_rng(0)
    ct = np.where(labels > 0, rng.normal(60, 15, labels.shape), -1000).astype(np.int16)
    for name, data in (("ct", ct), ("organs", labels)):
        nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / f"{name}.nii.gz")
    return tmp_path / "ct.nii.gz", tmp_path / "organs.nii.gz"


def test_own_scan_knows_masks_and_totalsegmentator(tmp_path):
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[1:3] = 1
    assert own_scan(*_scan(tmp_path, labels), "liver", None).label is None
    labels[4] = 5
    assert own_scan(*_scan(tmp_path, labels), "liver", None).label == 5
    assert own_scan(*_scan(tmp_path, labels), "liver", 1).label == 1


def test_own_scan_refuses_before_anything_is_trained(tmp_path):
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[1:3], labels[4] = 8, 9
    ct, organs = _scan(tmp_path, labels)
    with pytest.raises(ConfigError, match=r"has the labels \[8, 9\]: say which one is the liver with LABEL=N"):
        own_scan(ct, organs, "liver", None)
    with pytest.raises(ConfigError, match="no voxel of the liver"):
        own_scan(ct, organs, "liver", 5)
    with pytest.raises(ConfigError, match="give both"):
        own_scan(ct, None, "liver", None)
    assert main(["--out", str(tmp_path / "out"), "--ct", str(ct)]) == 1
    assert not (tmp_path / "out").exists()


def test_own_scan_in_air_is_refused_before_anything_is_trained(tmp_path):
    ct, organs = _scan(tmp_path, np.pad(np.ones((10, 10, 10), np.uint8), 1))
    nib.save(nib.Nifti1Image(np.full((12, 12, 12), -1000, np.int16), np.eye(4)), ct)
    words = ["--out", str(tmp_path / "out"), "--ct", str(ct), "--organs", str(organs)]
    assert main(words) == 1
    assert not (tmp_path / "out").exists()
    assert own_scan(ct, organs, "liver", None, accept_hu=True).accept_hu


def test_fresh_never_removes_a_folder_of_somebody_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    assert main(["--out", str(tmp_path), "--fresh"]) == 1
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_report_is_written_even_if_the_users_scan_fails(tmp_path, monkeypatch):
    failing = Step(name=OWN_SCAN, command=["difftumor", "no-such-command"], is_done=lambda: False)
    reported = {}
    monkeypatch.setattr("stages.demo.run._training_steps", lambda *_: [])
    monkeypatch.setattr("stages.demo.run._using_steps", lambda *_: [failing])
    monkeypatch.setattr(
        "stages.demo.run.write_report", lambda folder, costs, organ: reported.update(costs) or folder.report
    )
    with pytest.raises(TrainingError, match=r"failed \(exit status 2\).*report without it is at .*report\.html"):
        run_demo(DemoFolder(tmp_path), scan=None, fresh=False, overrides=[])
    assert reported == {}


@pytest.mark.slow
def test_readme_commands_run(finished, tmp_path):
    """The commands as they stand, on a phantom: files of the same names, and stages at demo size."""
    healthy = next(case for case in read_cases(finished.test).cases if not case.tumor_organs)
    shutil.copy(healthy.image, tmp_path / "ct.nii.gz")
    labels = nib.load(healthy.labels)
    liver = (np.asarray(labels.dataobj) == 1).astype(np.uint8)
    nib.save(nib.Nifti1Image(liver, labels.affine), tmp_path / "liver.nii.gz")
    nib.save(nib.Nifti1Image(liver * np.uint8(5), labels.affine), tmp_path / "labels.nii.gz")
    (tmp_path / "truth").mkdir()
    nib.save(nib.Nifti1Image(liver, labels.affine), tmp_path / "truth" / "ct.nii.gz")
    (tmp_path / "tumors.yaml").write_text("tumors:\n- {generator: handcrafted, location: central, mass_effect: 30}\n")
    shutil.copytree(finished.checkpoints, tmp_path / "checkpoints")
    # Where what is imported does not replace what the other commands use.
    published = tmp_path / "published"
    saved(lightning(autoencoder_entries()), published / "AutoencoderModel.ckpt")
    saved(diffusion_checkpoint(autoencoder_entries()), published / "liver_early.pt")
    ran = 0
    for words in commands(REPOSITORY / "README.md"):
        if words[0] in ("make", "source") or "stages.submit" in words:
            continue  # .ci/run runs the first; the last returns before its jobs have begun
        words = [word.replace("/data/phantom", str(tmp_path / "phantom")) for word in words]
        words = [word.replace("/data/healthy", str(finished.test)) for word in words]
        words = [re.sub("/data/Task0[37]_(Liver|Pancreas)", str(finished.training), word) for word in words]
        if words[:2] == ["python", "-m"] and words[2].startswith("stages."):
            words = [word for word in words if not word.startswith("data.root=")]
            words += ["experiment=demo", f"data.root={finished.training}", "trainer=cpu", "name=readme", "fresh=true"]
            words += TINY
        program = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "difftumor"]
        place = published if words[1] == "import-published" else tmp_path
        done = subprocess.run([*program, *words[1:]], cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
        ran += 1
    assert ran >= 12
    for name in ("out", "learned", "planned", "again", f"many/{healthy.id}"):
        assert (tmp_path / name / "preview.png").is_file()
    assert (tmp_path / "out" / "ct.nii.gz").read_bytes() == (tmp_path / "again" / "ct.nii.gz").read_bytes()
    assert (tmp_path / "phantom" / "dataset.json").is_file()
    assert (tmp_path / "card" / "report.html").is_file()
    assert (tmp_path / "evaluation" / "report.html").is_file()
    assert (tmp_path / "nnUNet_raw" / "Dataset501_LiverTumor" / "splits_final.json").is_file()
    assert (tmp_path / "liver_bundle" / "models" / "model.pt").is_file()
    assert read_config(published / "checkpoints" / "diffusion_liver_early").settings["timesteps"] == 4
