"""The latent cache: whole files of the right crop or none, whoever writes them, and whatever happens to them."""

import multiprocessing
import os
import signal
import time

import pytest
import torch

from difftumor.errors import ConfigError
from stages.diffusion.latent_cache import LatentCache, latent_key

KEY = latent_key(case="a", crop=[16, 16, 16], number=1)


def tensors(seed=0, size=2):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(n, size, size, size, generator=generator) for name, n in (("latent", 3), ("condition", 4))
    }


def check_same(found, wanted):
    assert found is not None
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_what_is_written_is_read(tmp_path):
    cache = LatentCache(tmp_path / "deep" / "cache")
    assert cache.read(KEY) is None
    cache.write(KEY, tensors())
    check_same(cache.read(KEY), tensors())
    cache.write(KEY, tensors(1))  # replaced
    check_same(cache.read(KEY), tensors(1))
    assert [file.name for file in cache.folder.iterdir()] == [cache.file(KEY).name]
    assert cache.read(latent_key(case="a", crop=[16, 16, 16], number=2)) is None


def test_a_tensor_may_be_a_view_or_have_a_gradient(tmp_path):
    cache = LatentCache(tmp_path)
    view = torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1)
    cache.write(KEY, {"latent": view, "condition": torch.ones(2, requires_grad=True)})
    check_same(cache.read(KEY), {"latent": view.contiguous(), "condition": torch.ones(2)})


def test_a_key_holds_all_parts_in_any_order():
    assert latent_key(a=1, b={"d": 2, "c": [3]}) == latent_key(b={"c": [3], "d": 2}, a=1)
    assert len({latent_key(**parts) for parts in ({"a": 1}, {"a": "1"}, {"b": 1}, {"a": [1]}, {"a": None}, {})}) == 6
    with pytest.raises(ValueError, match="JSON"):
        latent_key(a=float("nan"))


def test_a_truncated_file_is_noticed_and_can_be_made_again(tmp_path):
    cache = LatentCache(tmp_path)
    cache.write(KEY, tensors())
    whole = cache.file(KEY).read_bytes()
    for length in (*range(0, len(whole), 9), len(whole) - 1):
        cache.file(KEY).write_bytes(whole[:length])
        assert cache.read(KEY) is None, length
    cache.file(KEY).write_bytes(whole + b"\0")
    assert cache.read(KEY) is None
    cache.write(KEY, tensors())
    check_same(cache.read(KEY), tensors())


def test_a_wrong_bit_is_noticed(tmp_path):
    cache = LatentCache(tmp_path)
    cache.write(KEY, tensors(size=1))
    whole = cache.file(KEY).read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        cache.file(KEY).write_bytes(damaged)
        assert cache.read(KEY) is None, place


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"no latent", b"\xff" * 64])
def test_other_things_are_no_latents(tmp_path, content):
    cache = LatentCache(tmp_path)
    cache.file(KEY).write_bytes(content)
    assert cache.read(KEY) is None
    cache.write(KEY, tensors())
    check_same(cache.read(KEY), tensors())


def test_a_file_of_another_key_is_never_taken(tmp_path):
    cache = LatentCache(tmp_path)
    other = latent_key(case="b")
    cache.write(other, tensors())
    os.rename(cache.file(other), cache.file(KEY))
    assert cache.read(KEY) is None


def test_others_may_read_what_one_writes(tmp_path):
    umask = os.umask(0o022)
    try:
        cache = LatentCache(tmp_path)
        cache.write(KEY, tensors())
    finally:
        os.umask(umask)
    assert cache.file(KEY).stat().st_mode & 0o777 == 0o644


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        LatentCache(tmp_path / "file").write(KEY, tensors())
    assert "\n" not in str(caught.value)
    folder = LatentCache(tmp_path)
    folder.file(KEY).mkdir()
    assert folder.read(KEY) is None
    with pytest.raises(ConfigError, match="cannot hold another latent"):
        folder.write(KEY, tensors())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file", folder.file(KEY).name])


def _write_again_and_again(folder, times):
    for _ in range(times):
        for number in range(3):
            LatentCache(folder).write(latent_key(number=number), tensors(number, size=16))


def test_processes_write_and_read_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_again_and_again, args=(tmp_path, 40)) for _ in range(3)]
    for writer in writers:
        writer.start()
    cache, seen, looks = LatentCache(tmp_path), set(), 0
    while any(writer.is_alive() for writer in writers) or looks == 0:
        for number in range(3):
            found = cache.read(latent_key(number=number))
            if found is None:
                assert number not in seen  # once there, always there
            else:
                seen.add(number)
                looks += 1
                check_same(found, tensors(number, size=16))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen == {0, 1, 2}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_writer_that_is_killed_leaves_a_whole_file_or_none(tmp_path):
    context = multiprocessing.get_context("fork")
    for wait_s in (0.005, 0.01, 0.02, 0.03, 0.05):
        writer = context.Process(target=_write_again_and_again, args=(tmp_path, 1000))
        writer.start()
        time.sleep(wait_s)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        cache = LatentCache(tmp_path)
        for number in range(3):
            if cache.file(latent_key(number=number)).exists():
                check_same(cache.read(latent_key(number=number)), tensors(number, size=16))
    _write_again_and_again(tmp_path, 1)
    for number in range(3):
        check_same(cache.read(latent_key(number=number)), tensors(number, size=16))
