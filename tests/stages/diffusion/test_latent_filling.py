"""Filling a cache: processes share the work without a word, damaged files are made again, and it is said."""

import errno
import multiprocessing
import time
from functools import partial

import pytest
import torch

from difftumor.errors import ConfigError
from stages.diffusion.latent_cache import LatentCache, latent_key
from stages.diffusion.latent_filling import CaseCrops, fill

CASES, CROPS, PROCESSES = 4, 10, 3


def key(case, number):
    return latent_key(case=case, number=number)


def wanted(loaded):
    """Crops of cases that note when they are read."""

    def load(case):
        loaded.append(case)
        return case

    def cut(item, *, number):
        return {"case": item, "number": number}

    return [
        CaseCrops(load=partial(load, case), cuts={key(case, n): partial(cut, number=n) for n in range(CROPS)})
        for case in range(CASES)
    ]


def encode(item):
    return {"latent": torch.tensor([item["case"], item["number"]])}


def check_full(cache):
    assert len(list(cache.folder.iterdir())) == CASES * CROPS
    for case in range(CASES):
        for number in range(CROPS):
            assert cache.read(key(case, number))["latent"].tolist() == [case, number]


def test_only_what_is_missing_or_damaged_is_made(tmp_path, capsys):
    cache, loaded, made = LatentCache(tmp_path / "cache"), [], []

    def noted(item):
        made.append((item["case"], item["number"]))
        return encode(item)

    fill(cache, wanted(loaded), encode=noted, bytes_each=2_000_000)
    said = f"Latents in {cache.folder}: 40 of 2 MB, 0.08 GB in all; "
    assert capsys.readouterr().out == f"{said}0 are there, 40 to be made.\n"
    assert sorted(loaded) == list(range(CASES))  # each case once
    assert len(made) == len(set(made)) == CASES * CROPS
    check_full(cache)
    loaded.clear()
    made.clear()
    cache.file(key(1, 2)).unlink()
    cache.file(key(1, 3)).write_bytes(cache.file(key(1, 3)).read_bytes()[:-1])
    cache.file(key(3, 0)).write_bytes(cache.file(key(0, 0)).read_bytes())
    fill(cache, wanted(loaded), encode=noted, bytes_each=2_000_000)
    assert capsys.readouterr().out == f"{said}37 are there, 3 to be made.\n"
    assert sorted(loaded) == [1, 3]
    assert sorted(made) == [(1, 2), (1, 3), (3, 0)]
    check_full(cache)
    fill(cache, wanted(loaded), encode=noted, bytes_each=2_000_000, silent=True)
    assert not capsys.readouterr().out
    assert len(made) == 3


def test_a_full_cache_may_be_read_only(tmp_path, monkeypatch):
    cache = LatentCache(tmp_path / "cache")
    fill(cache, wanted([]), encode=encode, bytes_each=1)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("difftumor.files.results.tempfile.mkdtemp", refuse)
    fill(cache, wanted([]), encode=encode, bytes_each=10**18)
    cache.file(key(1, 2)).unlink()
    with pytest.raises(ConfigError, match=r"^latents\.cache .*/cache cannot be written \(permission denied\): give a"):
        fill(cache, wanted([]), encode=encode, bytes_each=1)


def test_a_long_fill_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("stages.diffusion.latent_filling.SAID_EVERY", 10)
    fill(LatentCache(tmp_path), wanted([]), encode=encode, bytes_each=1)
    assert capsys.readouterr().out.splitlines()[1:] == [f"{number} of 40 encoded." for number in (10, 20, 30)]
    fill(LatentCache(tmp_path / "silent"), wanted([]), encode=encode, bytes_each=1, silent=True)
    assert not capsys.readouterr().out


def test_an_interrupted_fill_keeps_what_was_made(tmp_path):
    cache, made = LatentCache(tmp_path), []

    def dying(item):
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append(item)
        return encode(item)

    with pytest.raises(KeyboardInterrupt):
        fill(cache, wanted([]), encode=dying, bytes_each=1)
    assert len(list(tmp_path.iterdir())) == 7
    fill(cache, wanted([]), encode=encode, bytes_each=1)
    check_full(cache)


def _fill_with_others(folder, start, counts):
    made = 0

    def slow(item):
        nonlocal made
        made += 1
        time.sleep(0.01)  # so that the processes are at it at once
        return encode(item)

    start.wait()
    cache = LatentCache(folder)
    fill(cache, wanted([]), encode=slow, bytes_each=1, silent=True)
    complete = all(cache.read(key(case, n)) is not None for case in range(CASES) for n in range(CROPS))
    counts.put((made, complete))


def test_processes_share_the_work_and_each_ends_with_all_of_it(tmp_path):
    context = multiprocessing.get_context("fork")
    start, counts = context.Barrier(PROCESSES), context.Queue()
    (tmp_path / "cache").mkdir()
    started = [
        context.Process(target=_fill_with_others, args=(tmp_path / "cache", start, counts)) for _ in range(PROCESSES)
    ]
    for process in started:
        process.start()
    results = [counts.get(timeout=60) for _ in started]
    for process in started:
        process.join()
        assert process.exitcode == 0
    assert all(complete for _, complete in results)
    made = [number for number, _ in results]
    assert min(made) > 0
    assert CASES * CROPS <= sum(made) < 0.7 * PROCESSES * CASES * CROPS
    check_full(LatentCache(tmp_path / "cache"))
