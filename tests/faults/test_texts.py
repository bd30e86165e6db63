"""Text files of anybody: bombs, depth, digits, endless fields and pipes end in one sentence, at once."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from difftumor.datasets.cases import read_cases
from difftumor.datasets.sources import read_dataset_labels, read_label_table
from difftumor.errors import DiffTumorError, sentence_of
from difftumor.evaluation.cohort.folds import read_folds
from difftumor.evaluation.robustness.dimensions import read_dimensions
from difftumor.files.texts import parse_json, parse_yaml, read_table, read_text
from difftumor.models.artifact_config import read_config
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan.record import read_record
from difftumor.synthesis.spec import read_plan
from tests.conftest import REPOSITORY

# Nine to the power of thirty entries.
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 31))
HOSTILE = {
    "braces": '{"a":' * 100_000,
    "brackets": "[" * 100_000 + "]" * 100_000,
    "digits": '{"labels": {"liver": 1' + "0" * 10_000 + "}}",
    "merges": MERGES,
    "itself": "labels: &a [*a]",
    "field": "image,case,fold\n" + "x" * 131_073 + ",a,0\n",
    "no text": b"\xff\xfe\x00\x81",
    "nothing": b"",
    "zeros": bytes(1000),
    "an object": "labels: !!python/object/apply:os.system [touch hit]",
    "a date": "labels: {liver: 2020-99-99}",
    "a number": "17",
    "NaN": "NaN",
}


def _config(file):
    folder = file.parent / "artifact"
    folder.mkdir()
    (folder / "config.json").write_bytes(file.read_bytes())
    return read_config(folder)


READERS = {
    "cases.json": read_cases,
    "cases.csv": read_cases,
    "cases.txt": read_cases,
    "labels.yaml": read_label_table,
    "dataset.json": read_dataset_labels,
    "plan.yaml": read_plan,
    "record.json": read_record,
    "tumor.json": lambda file: TumorRecord.from_json(file.read_text(encoding="utf-8", errors="replace")),
    "folds.json": read_folds,
    "folds.csv": read_folds,
    "dimensions.yaml": read_dimensions,
    "config.json": _config,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_ends_in_one_sentence(tmp_path, kind, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = HOSTILE[kind]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if name == "dataset.json" and kind in ("a number", "NaN"):
        assert READERS[name](tmp_path / name) == {}  # no labels are stated
        return
    with pytest.raises(DiffTumorError) as caught:
        READERS[name](tmp_path / name)
    text = sentence_of(caught.value)
    assert "\n" not in text
    assert len(text) < 2010
    assert name in text or name == "tumor.json"
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("name", sorted(set(READERS) - {"tumor.json", "config.json"}))
def test_a_pipe_that_nobody_writes_to_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DiffTumorError):
        READERS[name](tmp_path / name)


def test_what_a_shell_hands_over_is_read():
    receive, send = os.pipe()
    os.write(send, b'{"a": 1}')
    os.close(send)
    with os.fdopen(receive):
        assert read_text(Path(f"/dev/fd/{receive}")) == '{"a": 1}'


def test_aliases_of_a_usual_size_are_written_out():
    assert parse_yaml("a: &a {k: 1}\nb: {<<: *a, c: 2}") == {"a": {"k": 1}, "b": {"k": 1, "c": 2}}
    assert parse_yaml("- &a x\n- *a\n- *a") == ["x"] * 3


def test_what_is_within_bounds_is_read_as_the_libraries_read_it():
    deep: object = 7
    for _ in range(60):
        deep = {"a": [deep]} if isinstance(deep, int) else [deep]
    content = {"deep": deep, "number": 10**39, "text": "1" * 5000, "more": [1.5, True, None, -3]}
    assert parse_json(json.dumps(content)) == content
    assert parse_yaml(json.dumps(content)) == content


def test_tables_say_which_line_is_wrong(tmp_path):
    file = tmp_path / "table.csv"
    file.write_bytes('\ufeffa,b\n1,"x, y"\n\n2\n'.encode())
    assert read_table(file) == (["a", "b"], [(2, {"a": "1", "b": "x, y"}), (4, {"a": "2"})])
    file.write_text("a\n1\n2,3\n")
    with pytest.raises(ValueError, match="line 3 has more values"):
        read_table(file)


def test_a_list_of_a_million_is_refused_before_it_is_looked_up(tmp_path):
    (tmp_path / "cases.txt").write_text("a.nii.gz\n" * 1_000_000)
    with pytest.raises(DiffTumorError, match="lists 1000000 cases, more than 200000"):
        read_cases(tmp_path / "cases.txt")


def test_all_of_the_library_reads_texts_within_bounds():
    unbounded = re.compile(r"json\.loads?\([^()]*read_text|json\.load\(|yaml\.(safe_)?load\(|csv\.(Dict)?[rR]eader\(")
    found = {
        str(file.relative_to(REPOSITORY))
        for file in (REPOSITORY / "difftumor").rglob("*.py")
        if unbounded.search(file.read_text(encoding="utf-8"))
    }
    assert found == {"difftumor/files/texts.py"}


@pytest.mark.parametrize(
    "text",
    ["1.2.840.113619.2.55.3.604688119.971.1390819478.2024", "9" * 63 + "e", "0123456789" * 4 + ":abcdef", "1e" * 32],
)
def test_text_that_begins_like_a_number_is_text(text):
    """UIDs of DICOM and checksums, which YAML is written with without quotes."""
    assert parse_yaml(yaml.safe_dump({"name": text})) == {"name": text}
    assert parse_yaml(f"name: {text}") == {"name": text}


@pytest.mark.parametrize(
    "text", ["9" * 41, "-1" + "_0" * 40, "0x" + "f" * 60, "1" + ":59" * 30, "!!int '" + "9" * 41 + "'"]
)
def test_numbers_without_end_are_refused_in_yaml(text):
    with pytest.raises(ValueError, match="it holds a number of"):
        parse_yaml(f"name: {text}")
