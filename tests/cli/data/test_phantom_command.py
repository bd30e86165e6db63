"""``difftumor phantom`` from the command line to the files."""

import json

import pytest

from tests.conftest import run


def test_options_reach_the_cohort(tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--cases", 2, "--organs", "kidney", "--seed", 9, "--shape", "32,24,24", "--spacing", 10)
    assert run("phantom", out, *words, "--healthy", 0.5, "--tumor-radius", 15) == 0
    assert str(out / "dataset.json") in capsys.readouterr().out
    content = json.loads((out / "dataset.json").read_text())
    settings = content["phantom"]
    assert settings["seed"] == 9
    assert settings["organs"] == ["kidney"]
    assert settings["shape"] == [32, 24, 24]
    assert settings["spacing_mm"] == [10.0, 10.0, 10.0]
    assert settings["tumor_radius_mm"] == [15.0, 15.0]
    assert sorted(entry["tumor_organs"] for entry in content["training"]) == [[], ["kidney"]]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--organs", "lung"), "liver, pancreas, kidney"),
        (("--shape", "1,2"), "--shape"),
        (("--shape", "4"), "at least 16"),
        (("--healthy", "2"), "0 to 1"),
        (("--cases", "0"), "1 or more"),
        (("--tumor-radius", "9,3"), "tumor_radius_mm"),
    ],
)
def test_wrong_values_are_one_sentence_and_leave_nothing(tmp_path, capsys, words, hint):
    assert run("phantom", tmp_path / "out", *words) == 1
    err = capsys.readouterr().err
    assert err.startswith("Error: ")
    assert hint in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_not_even_parents_and_stdout_is_for_the_result(tmp_path, capsys):
    arguments = ["--cases", "1", "--shape", "32"]
    assert run("phantom", tmp_path / "a" / "b", *arguments, "--spacing", "1") == 1
    assert "field of view" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert run("phantom", tmp_path / "a" / "b", *arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"Wrote 1 case: {tmp_path / 'a' / 'b' / 'dataset.json'}"]
    assert printed.err == ""
