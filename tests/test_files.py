"""Files and folders appear whole or not at all."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from difftumor.errors import ConfigError
from difftumor.files.archives import archive_damage
from difftumor.files.fields import wanted_instead
from difftumor.files.memory import free_memory_bytes
from difftumor.files.results import ResultFolder, check_folder, check_results, is_json_with
from difftumor.files.writing import folder_written_whole, guarded, written_whole

RESULT = ResultFolder(what="result", holds=("a.json", "maps/*.nii"), mark="a.json", is_own=is_json_with("mine"))


def tree(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_folder(folder, text="new", **options):
    with folder_written_whole(folder, **options) as staging:
        (staging / "a").write_text(text)


def fail_in(context, name=None):
    """Write half of something inside a context manager, then fail."""
    with context as place:
        (place if name is None else place / name).write_text("half")
        raise KeyError


def test_a_file_replaces_another_only_when_whole(tmp_path):
    path = tmp_path / "deep" / "er" / "file.nii.gz"
    with pytest.raises(KeyError):
        fail_in(written_whole(path))
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two"):
        with written_whole(path) as temporary:
            assert temporary.name.endswith(".file.nii.gz")
            temporary.write_text(text)
        assert tree(tmp_path) == {"deep/er/file.nii.gz": text}


def test_a_failure_leaves_no_folder_and_no_parents(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyError):
        fail_in(folder_written_whole(tmp_path / "mine" / "deep" / "out"), "a")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_parents_that_others_use_stay_after_a_failure(tmp_path):
    with pytest.raises(KeyError):
        fail_in(folder_written_whole(tmp_path / "shared" / "deep" / "out"), "../../theirs")
    assert tree(tmp_path) == {"shared/theirs": "half"}
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["theirs"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    write_folder(tmp_path / "out")
    assert tree(tmp_path) == {"out/a": "new"}
    assert os.listdir(tmp_path) == ["out"]


def test_others_are_kept_on_request(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("old")
    write_folder(tmp_path, keep_others=True)
    assert tree(tmp_path) == {"a": "new", "b": "old"}


@pytest.mark.parametrize("folder", [".", "link"])
def test_an_empty_folder_is_filled_not_replaced(tmp_path, monkeypatch, folder):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path if folder == "link" else tmp_path / "real")
    inode = (tmp_path / "real").stat().st_ino
    write_folder(type(tmp_path)(folder))
    assert (tmp_path / "real").stat().st_ino == inode
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path / "real") == {"a": "new"}


def test_an_old_folder_comes_back_when_it_cannot_be_replaced(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", "old")
    replace, calls = os.replace, []

    def fails_once(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "out")
    assert tree(tmp_path) == {"out/a": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/out cannot be written \(.*\): give a place"):
        write_folder(tmp_path / "file" / "out")


def test_a_place_is_tried_before_the_work_and_left_as_it_was(tmp_path):
    check_folder(tmp_path / "new" / "deep", option="--out")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="nowhere that even root may not write")
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work():
    with pytest.raises(ConfigError, match=r"^--out /proc/out cannot be written"):
        check_folder(Path("/proc/out"), option="--out")


def test_files_join_a_folder_that_others_made_meanwhile(tmp_path):
    folder = tmp_path / "out"
    with folder_written_whole(folder, keep_others=True, last="a.json") as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "a").write_text("new")
        (staging / "a.json").write_text("new")
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "b").write_text("theirs")
    assert tree(folder) == {"deep/a": "new", "deep/b": "theirs", "a.json": "new"}
    assert os.listdir(tmp_path) == ["out"]


def result_at(folder):
    (folder / "maps").mkdir(parents=True)
    (folder / "maps" / "one.nii").write_text("")
    (folder / "a.json").write_text('{"mine": 1}')
    return folder


def test_an_earlier_result_may_be_replaced_only_when_asked(tmp_path):
    for free in (tmp_path / "new", tmp_path):
        RESULT.check(free, overwrite=False)
    out = result_at(tmp_path / "out")
    RESULT.check(out, inputs=[tmp_path])
    assert RESULT.is_earlier(out)
    with pytest.raises(
        ConfigError, match=r"^OUT .*out is not empty: stop, or replace an earlier result with overwrite"
    ):
        RESULT.check(out, option="OUT", remedy="stop", overwrite=False)


@pytest.mark.parametrize("file", ["b.json", "maps/notes.txt", "deep/one.nii", "maps/mine/one.nii"])
def test_a_folder_with_anything_else_is_no_earlier_result(tmp_path, file):
    out = result_at(tmp_path / "out")
    (out / file).parent.mkdir(exist_ok=True, parents=True)
    (out / file).write_text("")
    assert not RESULT.is_earlier(out)
    with pytest.raises(ConfigError, match=f"holds {file}, which is not part of an earlier result: give another folder"):
        RESULT.check(out)


@pytest.mark.parametrize("text", [None, "", "[]", '{"yours": 1}'])
def test_a_folder_without_its_mark_is_no_earlier_result(tmp_path, text):
    out = result_at(tmp_path / "out")
    (out / "a.json").unlink() if text is None else (out / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=r"is not an earlier result, for it has no a\.json written by difftumor"):
        RESULT.check(out)


def test_an_input_is_never_replaced(tmp_path):
    out = result_at(tmp_path / "out")
    (tmp_path / "link").symlink_to("out")
    for place, file in ((out, out), (out, tmp_path / "link" / "maps" / "one.nii"), (tmp_path / "link", out / "a.json")):
        with pytest.raises(ConfigError, match="holds the input"):
            RESULT.check(place, inputs=[tmp_path / "other", file])
    for file in (out / "a.json", tmp_path / "link" / "maps" / "one.nii"):
        with pytest.raises(ConfigError, match="would replace the input"):
            check_results(out, ["a.json", "maps", "new"], inputs=[file], overwrite=True)
    check_results(out, ["a.json"], inputs=[out / "maps" / "one.nii"], overwrite=True)
    with pytest.raises(ConfigError, match=r"already holds maps: .*--overwrite"):
        check_results(out, ["new", "maps"], inputs=[], overwrite=False)


def test_what_a_result_does_not_have_is_removed_only_when_it_takes_its_place(tmp_path):
    def refuse():
        raise ConfigError("Somebody else writes here.")

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "cases.csv").touch()
    (tmp_path / "picture.png").touch()
    stale = [tmp_path / "old", tmp_path / "picture.png", tmp_path / "absent.png"]
    with pytest.raises(ConfigError), guarded(refuse), folder_written_whole(tmp_path, keep_others=True, without=stale):
        pass
    assert (tmp_path / "old" / "cases.csv").is_file()
    assert (tmp_path / "picture.png").is_file()
    with folder_written_whole(tmp_path, keep_others=True, without=stale) as staging:
        (staging / "new.csv").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


def test_free_memory_is_what_the_control_group_leaves(tmp_path):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal: 900 kB\nMemAvailable:     500 kB\n")
    assert free_memory_bytes(tmp_path) == 500 * 1024
    write("sys/fs/cgroup/memory.max", "max\n")
    write("sys/fs/cgroup/memory.current", "1000\n")
    assert free_memory_bytes(tmp_path) == 500 * 1024
    write("sys/fs/cgroup/memory.max", "5000\n")
    assert free_memory_bytes(tmp_path) == 4000
    assert free_memory_bytes() > 2**20
    assert Path("/proc/meminfo").is_file()


@pytest.mark.parametrize(
    ("line", "top", "limit", "used"),
    [
        ("0::/slurm/job_1/step_0", "sys/fs/cgroup", "memory.max", "memory.current"),
        ("4:cpu,memory:/slurm/job_1/step_0", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_the_limit_of_a_job_counts_wherever_it_is_above_the_process(tmp_path, line, top, limit, used):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemAvailable:     500 kB\n")
    write("proc/self/cgroup", f"7:pids:/slurm\n{line}\n")
    write(f"{top}/slurm/job_1/{limit}", "9000\n")
    write(f"{top}/slurm/job_1/{used}", "8000\n")
    assert free_memory_bytes(tmp_path) == 1000
    # Files that were read fill a job's memory sooner or later, and give way.
    write(f"{top}/slurm/job_1/memory.stat", "anon 2000\ninactive_file 5000\n")
    assert free_memory_bytes(tmp_path) == 6000
    write(f"{top}/slurm/job_2/{limit}", "1\n")
    write(f"{top}/slurm/job_2/{used}", "1\n")
    assert free_memory_bytes(tmp_path) == 6000


@pytest.mark.parametrize(
    ("value", "annotation", "wanted"),
    [
        (np.int64(2), "int", ""),
        (True, "int", "a whole number"),
        (1, "bool", "true or false"),
        (2.0, "int", "a whole number"),
        (2, "float", ""),
        (float("nan"), "float", "a finite number"),
        (None, "float", "a finite number"),
        (None, "tuple[float, float] | None", ""),
        ([1, 2, 3], "tuple[float, float] | None", "two finite numbers or null"),
        ([1, 2, 3], "Voxel", ""),
        ([1, 2, 3.5], "Voxel", "three whole numbers, one per axis"),
        ("ab", "frozenset[str]", "a list of names"),
        ([], "frozenset[str]", ""),
        ({"a": 1}, "Any", ""),
    ],
)
def test_a_value_of_another_type_is_told_what_the_field_takes(value, annotation, wanted):
    assert wanted_instead(value, annotation) == wanted


def write_archive(path, *names, compression=zipfile.ZIP_STORED, attributes=0):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name)
            entry.compress_type, entry.external_attr = compression, attributes
            archive.writestr(entry, b"content of " + name.encode())
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_pytorch_has_not_written_are_known(tmp_path):
    file = tmp_path / "archive.zip"
    assert archive_damage(write_archive(file, "a", "b")) == ""
    file.write_bytes(file.read_bytes().replace(b"content of b", b"content of c"))
    assert archive_damage(file) == "the checksum of 'b' differs"
    assert archive_damage(file, sums=False) == ""
    assert "compressed" in archive_damage(write_archive(file, "a", compression=zipfile.ZIP_DEFLATED))
    assert "folder" in archive_damage(write_archive(file, "a", attributes=0x10))
    assert "twice" in archive_damage(write_archive(file, "a", "a"))
