"""Cases kept on disk and in memory: the same as those that are read, whole, and found by all that decides them."""

import os

import nibabel as nib
import numpy as np
import pytest
import torch

from difftumor.datasets.caching import CachedOnDisk, cache_rate
from difftumor.datasets.cases import Case
from difftumor.datasets.crops import with_class_centers
from difftumor.datasets.transforms import load_case
from difftumor.errors import ConfigError, VolumeError


@pytest.fixture
def case(tmp_path):
    ct, labels = np.arange(-900, -780, dtype=np.int16).reshape(6, 5, 4), np.zeros((6, 5, 4), np.uint8)
    labels[1:4, 1:4, 1:3] = 1
    for name, data in (("ct", ct), ("labels", labels)):
        nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / f"{name}.nii.gz")
    return Case("a", tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz")


class Reader:
    """Counts what it reads."""

    def __init__(self):
        self.reads = 0

    def __call__(self, case):
        self.reads += 1
        return {**with_class_centers(load_case(case, None)), "healthy": True, "offset_hu": 1 / 3}


def cached(tmp_path, reader, **about):
    return CachedOnDisk(reader, lambda case: about, tmp_path / "cache")


def check_same(one, two):
    assert list(one) == list(two) or set(one) == set(two)
    for name, value in two.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(one[name], value)
            assert one[name].dtype == value.dtype
        elif name == "centers":
            assert [part.dtype for part in one[name]] == [part.dtype for part in value]
            assert all(np.array_equal(a, b) for a, b in zip(one[name], value, strict=True))
        else:
            assert one[name] == value
            assert type(one[name]) is type(value)


def test_what_is_kept_is_what_was_read(tmp_path, case):
    reader = Reader()
    plain = reader(case)
    load = cached(tmp_path, reader)
    check_same(load(case), plain)
    check_same(load(case), plain)
    check_same(cached(tmp_path, reader)(case), plain)
    assert reader.reads == 2
    (file,) = (tmp_path / "cache").iterdir()
    assert file.stat().st_mode & 0o044 == 0o044  # other jobs may be other users'


def test_other_files_and_other_readers_have_other_keys(tmp_path, case):
    reader = Reader()
    cached(tmp_path, reader, spacing=1)(case)
    cached(tmp_path, reader, spacing=2)(case)
    assert reader.reads == 2
    stat = case.labels.stat()
    os.utime(case.labels, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    cached(tmp_path, reader, spacing=1)(case)
    assert reader.reads == 3
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_what_another_job_has_written_meanwhile_stays_in_its_place(tmp_path, case):
    files = []

    def slow(case):
        item = cached(tmp_path, Reader())(case)
        files.extend(path.stat().st_ino for path in (tmp_path / "cache").iterdir())
        return item

    check_same(CachedOnDisk(slow, lambda case: {}, tmp_path / "cache")(case), Reader()(case))
    assert [path.stat().st_ino for path in (tmp_path / "cache").iterdir()] == files


@pytest.mark.parametrize("damage", ["cut", "empty", "another"])
def test_a_damaged_file_is_made_again(tmp_path, case, damage):
    reader = Reader()
    load = cached(tmp_path, reader)
    plain = load(case)
    before = {name: value.clone() for name, value in plain.items() if isinstance(value, torch.Tensor)}
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    other = {"cut": content[:-7], "empty": b"", "another": content.replace(b'"case\\":\\"a', b'"case\\":\\"b')}[damage]
    assert other != content
    file.unlink()  # as another job would: what is mapped stays as it is
    file.write_bytes(other)
    again = load(case)
    assert reader.reads == 2
    assert all(torch.equal(again[name], value) for name, value in before.items())
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [file.name]


def test_a_case_that_cannot_be_read_leaves_nothing(tmp_path, case):
    case.image.write_bytes(b"no scan")
    with pytest.raises(VolumeError):
        cached(tmp_path, Reader())(case)
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, case):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match=r"cache"):
        cached(tmp_path, Reader())(case)


def test_as_many_cases_as_half_of_the_memory_holds(tmp_path, case):
    each = 6 * 5 * 4 * 5  # bytes at 1 mm
    assert cache_rate([case] * 4, spacing_mm=(1, 1, 1), free_bytes=4 * each) == pytest.approx(0.5)
    assert cache_rate([case] * 4, spacing_mm=(1, 1, 1), free_bytes=4 * each, processes=2) == pytest.approx(0.25)
    assert cache_rate([case] * 4, spacing_mm=(1, 1, 1), free_bytes=100 * each) == 1
    # Four voxels of 2 mm hold the centers of six of 1 mm.
    assert cache_rate([case] * 4, spacing_mm=(2, 1, 1), free_bytes=4 * each) == pytest.approx(0.75)
    assert cache_rate([], spacing_mm=(1, 1, 1), free_bytes=0) == 1
