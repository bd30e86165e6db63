"""Names and links that lead elsewhere: nothing is written, moved or removed outside of the folder of results."""

import json
import os
import shutil

import pytest

from difftumor.errors import ArtifactError, ConfigError, DiffTumorError
from difftumor.files.processes import mark
from difftumor.files.recovery import recover
from difftumor.models.artifact import load_artifact
from stages.run.folder import RunFolder
from tests.conftest import contents, run
from tests.segmentation.makers import make_segmenter, mask, organ, scan

IDS = ("../../stolen", "..", ".", "sub/stolen", "/tmp/difftumor stolen", "a\0b", "..\\stolen", "a" * 300)
GONE = mark().replace(f"-{os.getpid()}-", "-999999999-")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    scan(folder / "ct.nii.gz")
    labels = organ()
    labels[8:11, 8:11, 6:9] = 2
    mask(folder / "labels.nii.gz", labels)
    make_segmenter(folder / "segmenter")
    return folder


@pytest.fixture
def victim(tmp_path):
    """Return a folder that must stay as it is."""
    folder = tmp_path / "victim"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.nii.gz", "a.json", "a.png", "record.json", "deep/notes.txt", "summary.csv"):
        (folder / name).write_text("mine")
    yield folder
    assert set(contents(folder).values()) == {b"mine"}
    assert len(contents(folder)) == 6


CRAFTED = ("--organ", "liver", "--generator", "handcrafted", "--size", "tiny")
COMMANDS = {
    "predict": (
        "predict",
        "--ct",
        "LIST",
        "--model",
        "SEGMENTER",
        "--overlap",
        0.25,
        "--device",
        "cpu",
        "--out",
        "OUT",
    ),
    "synthesize": ("synthesize", "--cases", "LIST", *CRAFTED, "--out", "OUT"),
    "export": ("export", "nnunet", "OUT/Dataset501_A", "--cases", "LIST"),
    "split": ("split-tumors", "LIST", "OUT"),
    "select": ("select-healthy", "LIST", "--organ", "liver", "--out", "OUT/list.json"),
}


def words_of(command, files, listing, out):
    places = {"LIST": listing, "SEGMENTER": files / "segmenter", "OUT": out}
    return [places.get(word, str(word).replace("OUT", str(out))) for word in COMMANDS[command]]


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("name", IDS, ids=lambda name: repr(name[:20]))
@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_of_a_case_leads_out_of_the_results(files, tmp_path, capsys, command, name):
    listing, out = tmp_path / "in/deep/dataset.json", tmp_path / "a/b/out"
    listing.parent.mkdir(parents=True)
    entry = {"id": name, "image": str(files / "ct.nii.gz"), "label": str(files / "labels.nii.gz")}
    labels = {"background": 0, "liver": 1, "liver_tumor": 2}
    listing.write_text(json.dumps({"labels": labels, "training": [entry]}))
    before = contents(files)
    status = run(*words_of(command, files, listing, out))
    assert "Traceback" not in capsys.readouterr().err
    assert contents(files) == before
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - {listing}
    assert all(path.is_relative_to(out) for path in written)
    assert status != 0 or all(".." not in path.parts for path in written)
    assert not os.path.lexists("/tmp/difftumor stolen")


@pytest.mark.parametrize("name", ["../../stolen", "..", "a/b", "/stolen", "", ".hidden", "a b"])
def test_no_name_of_a_run_leads_out_of_its_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="name is"):
        RunFolder.of(runs_dir=tmp_path, stage="autoencoder", name=name)


@pytest.mark.parametrize("path", ["../victim", "/dev/stdin", "../fifo", "../loop", "\0", "../" * 40])
def test_no_parent_of_an_artifact_leads_to_more_than_a_description(tmp_path, victim, path):
    folder = make_segmenter(tmp_path / "child")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    description = json.loads((folder / "config.json").read_text())
    description.pop("identity", None)
    description["parents"] = {"autoencoder": {"path": path, "identity": "0" * 64}}
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError):
        load_artifact(folder).parent("autoencoder")


@pytest.mark.parametrize("linked", ["a.nii.gz", "a.json", "a.png"])
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_link_in_the_place_of_a_result_is_never_written_through(files, tmp_path, victim, linked, overwrite):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(files / "ct.nii.gz", tmp_path / "a.nii.gz")
    (out / linked).symlink_to(victim / linked)
    run("predict", "--ct", tmp_path / "a.nii.gz", "--model", files / "segmenter", "--overlap", 0.25, "--device", "cpu",
        "--out", out, *overwrite)  # fmt: skip


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_folder_of_others_in_the_place_of_a_result_is_refused(files, tmp_path, victim, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/scan").symlink_to(victim)
    listing = tmp_path / "list.json"
    entry = {"id": "scan", "image": str(files / "ct.nii.gz"), "label": str(files / "labels.nii.gz")}
    listing.write_text(json.dumps({"labels": {"background": 0, "liver": 1}, "training": [entry]}))
    assert run("synthesize", "--cases", listing, *CRAFTED, "--out", tmp_path / "out", *overwrite) == 1


LEFT = {
    "a link that is ready": (f".{GONE}.ready", "link"),
    "a link that stepped aside": (f".out.{GONE}.old", "link"),
    "a link that was half-written": (f".{GONE}.a.nii.gz", "link"),
    "the folder above": (f"....{GONE}.ready", "folder"),
    "the folder above, stepped aside": (f"....{GONE}.old", "folder"),
}


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("left", LEFT)
def test_what_others_name_like_leftovers_moves_and_removes_nothing_elsewhere(tmp_path, victim, left, inside):
    name, kind = LEFT[left]
    out = tmp_path / "out"
    out.mkdir()
    place = (out if inside else tmp_path) / name
    if kind == "link":
        place.symlink_to(victim)
    else:
        place.mkdir()
        (place / "stolen").write_text("theirs")
    recover(out)
    assert not (tmp_path / "stolen").exists()
    assert not (tmp_path.parent / "stolen").exists()
    assert [path.name for path in out.rglob("*") if not path.name.startswith(".")] in ([], ["stolen"])


def test_a_run_whose_folder_is_a_link_is_refused(tmp_path, victim):
    (tmp_path / "runs/autoencoder").mkdir(parents=True)
    folder = RunFolder.of(runs_dir=tmp_path / "runs", stage="autoencoder", name="it")
    folder.path.symlink_to(victim)
    for call in (folder.check_usable, folder.remove):
        with pytest.raises(DiffTumorError, match="is a symbolic link"):
            call()
