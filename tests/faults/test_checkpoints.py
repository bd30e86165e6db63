"""A damaged checkpoint is never trained on: the run ends as one that was not disturbed, or says what to do."""

import errno
import io
import json
import os
import shutil

import pytest
import torch

from difftumor.errors import ConfigError, TrainingError
from difftumor.files.processes import mark
from stages.autoencoder.train import build
from stages.run.checkpoint import DurableCheckpoints, check_checkpoint
from tests.faults.conftest import config_of
from tests.faults.harm import Payload
from tests.stages.builds import Crash, crashing_at, run

FLIPS, CUTS = 400, 60
GOOD = {"state_dict": {"w": torch.arange(40.0)}, "optimizer_states": [{"m": torch.ones(3)}], "steps_done": 4}


def _files(folder):
    return {path: path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()}


def _saved(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _with(last, **changes):
    return _saved({**torch.load(last, weights_only=True), **changes})


def _write_good(file, *, summed):
    if summed:
        DurableCheckpoints().save_checkpoint(GOOD, file)
    else:  # as earlier versions did
        torch.save(GOOD, file)
    return file.read_bytes()


@pytest.mark.harms(FLIPS)
@pytest.mark.parametrize("summed", [True, False])
def test_no_flipped_bit_is_read_as_other_weights(tmp_path, summed):
    good, refused = _write_good(file := tmp_path / "last.ckpt", summed=summed), 0
    # A bit of the table of parts makes torch take a tensor for a folder, and read nothing.
    folders = [place + 38 for place in range(len(good)) if good[place : place + 4] == b"PK\1\2"]
    flips = [(place * len(good) // FLIPS, place % 8) for place in range(FLIPS)] + [(place, 4) for place in folders]
    for place, bit in flips:
        bad = bytearray(good)
        bad[place] ^= 1 << bit
        file.write_bytes(bad)
        try:
            check_checkpoint(file)
        except TrainingError:
            refused += 1
            continue
        torch.testing.assert_close(torch.load(file, weights_only=True), GOOD, rtol=0, atol=0)
    assert refused > len(flips) / (1.1 if summed else 4)  # the rest is padding, or the checksum's own name


@pytest.mark.harms(CUTS)
@pytest.mark.parametrize("summed", [True, False])
def test_no_part_of_a_checkpoint_is_taken_for_all_of_it(tmp_path, summed):
    good = _write_good(file := tmp_path / "last.ckpt", summed=summed)
    for length in (number * (len(good) - 30) // CUTS for number in range(CUTS)):
        file.write_bytes(good[:length])
        with pytest.raises(TrainingError, match=r"last\.ckpt is (empty|damaged)"):
            check_checkpoint(file)


DAMAGES = {
    "gone": (lambda last: last.unlink(), "is missing"),
    "dangling": (lambda last: (last.unlink(), last.symlink_to("/not/mounted")), "is a link to /not/mounted"),
    "folder": (lambda last: (last.unlink(), last.mkdir()), "is not a file"),
    "empty": (lambda last: last.write_bytes(b""), "is empty"),
    "html": (lambda last: last.write_bytes(b"<html>"), "damaged or cut short, or no checkpoint"),
    "list": (lambda last: last.write_bytes(_saved([1])), "is no checkpoint of a training"),
    "attack": (lambda last: last.write_bytes(_saved(Payload(last.with_name("hit")))), "is damaged, or no checkpoint"),
    "nan": (lambda last: last.write_bytes(_with(last, state_dict={"w": torch.tensor([1, torch.nan])})),
            r"state_dict\.w is not finite"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_with_the_one_before_it_and_nothing_is_removed(copied, damage):
    folder, resume = copied
    harm, reason = DAMAGES[damage]
    harm(folder / "last.ckpt")
    before = _files(folder.parents[2])
    with pytest.raises(TrainingError, match=rf"last\.ckpt.*{reason}.*on_damage=previous.*\(step 2\).*fresh=true"):
        resume(build=lambda options: pytest.fail("read data"))
    assert _files(folder.parents[2]) == before
    assert not (folder / "hit").exists()


def test_weights_of_another_shape_are_one_sentence(copied):
    folder, resume = copied
    last = folder / "last.ckpt"
    state = torch.load(last, weights_only=True)["state_dict"]
    last.write_bytes(_with(last, state_dict={**state, next(iter(state)): torch.zeros(3)}))
    with pytest.raises(TrainingError, match=r"last\.ckpt cannot be resumed \(size mismatch for .*fresh=true"):
        resume()


def test_the_checkpoint_before_the_last_ends_in_the_same_weights(copied, cohort, tmp_path, capsys):
    folder, resume = copied
    whole = run(config_of(cohort, tmp_path / "whole"), build)
    (folder / "last.ckpt").write_bytes(b"")
    parted = resume("trainer.on_damage=previous")
    assert f"going on from {folder}/previous.ckpt (step 2)" in capsys.readouterr().out
    for name in ("autoencoder", "autoencoder_best"):
        files = [place.with_name(name) / "model.safetensors" for place in (parted, whole)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert check_checkpoint(folder / "previous.ckpt") == 6


def test_without_any_good_checkpoint_a_copy_or_a_fresh_start_is_asked_for(copied):
    folder, resume = copied
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / name).unlink()
    for overrides in ((), ("trainer.on_damage=previous",)):
        with pytest.raises(TrainingError, match=r"last\.ckpt is missing: bring back a copy of it, or set fresh=true"):
            resume(*overrides)
    assert list(folder.glob("tensorboard/*"))
    resume("fresh=true")


@pytest.mark.parametrize("lost", ["checkpoints of an earlier version", "folder"])
def test_a_best_artifact_shows_that_a_run_went_on(copied, lost):
    folder, resume = copied
    if lost == "folder":
        shutil.rmtree(folder)
    else:
        for name in ("last.ckpt", "previous.ckpt"):
            (folder / name).unlink()
        start = json.loads((folder / "start.json").read_text())
        assert start.pop("saved")
        (folder / "start.json").write_text(json.dumps(start))
    before = _files(folder.parents[2])
    with pytest.raises(TrainingError, match=r"last\.ckpt is missing.*fresh=true"):
        resume()
    assert _files(folder.parents[2]) == before


def test_a_run_stopped_before_its_first_checkpoint_starts_over(tiny_config, tmp_path):
    with pytest.raises(Crash):
        run(tiny_config(), crashing_at(build, 1))
    note = tmp_path / "runs/autoencoder/default/tensorboard/mine"
    note.touch()
    run(tiny_config("training.steps=2"), build)
    assert note.exists()


@pytest.mark.parametrize("text", ["", "<html>", "[1]", "{", "[" * 9999])
@pytest.mark.parametrize("name", ["start.json", "finished.json", "config.yaml"])
def test_a_damaged_record_is_one_sentence(copied, name, text):
    folder, resume = copied
    head = "# Resolved config of a run of stages.\n" if name == "config.yaml" and text else ""
    (folder / name).write_text(head + text)
    with pytest.raises(ConfigError, match=rf"{name}.*: (remove it|bring back a copy|choose another)"):
        resume()


def test_a_job_gets_past_a_damaged_start_with_fresh(copied):
    folder, resume = copied
    (folder / "start.json").write_text("{")
    resume("fresh=true", job="7")
    assert json.loads((folder / "start.json").read_text())["job"] == "7"


class _FullDisk:
    """Writes a little, then says what a full disk does."""

    def __call__(self, content, stream):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_last_checkpoint_and_no_part_of_a_new_one(tmp_path, monkeypatch):
    last = tmp_path / "last.ckpt"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "no such place"))
    DurableCheckpoints().save_checkpoint(GOOD, last)
    good = last.read_bytes()
    monkeypatch.setattr("torch.save", _FullDisk())
    message = r"last\.ckpt cannot be written \(no space left.*is kept\): free 0\.0 MB or more there and rerun"
    with pytest.raises(TrainingError, match=message):
        DurableCheckpoints().save_checkpoint(GOOD, last)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert last.read_bytes() == good


def test_weights_that_are_not_finite_take_nobodys_place(tmp_path):
    last = tmp_path / "last.ckpt"
    DurableCheckpoints().save_checkpoint(GOOD, last)
    bad = {**GOOD, "optimizer_states": [{"m": torch.tensor([1.0, torch.inf])}]}
    with pytest.raises(TrainingError, match=r"optimizer_states\.0\.m is not finite at step 4: .*last\.ckpt is kept"):
        DurableCheckpoints().save_checkpoint(bad, last)
    assert check_checkpoint(last) == 4
    huge = torch.full((2,), torch.finfo(torch.float32).max)  # whose sum overflows
    DurableCheckpoints().save_checkpoint({**GOOD, "ema": {"w": huge}}, last)


@pytest.mark.parametrize("links", [True, False])
def test_one_earlier_checkpoint_is_kept(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *places: (_ for _ in ()).throw(PermissionError))
    for step in (2, 4, 6):
        DurableCheckpoints().save_checkpoint({**GOOD, "steps_done": step}, tmp_path / "last.ckpt")
    assert [check_checkpoint(tmp_path / name) for name in ("last.ckpt", "previous.ckpt")] == [6, 4]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_kill_left_half_written_is_removed_by_the_next_run(copied):
    folder, resume = copied
    for name in (".last.ckpt.new", f".{mark().replace(f'-{os.getpid()}-', '-999999999-')}.last.ckpt"):
        (folder / name).write_bytes(b"half")
    resume()
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
