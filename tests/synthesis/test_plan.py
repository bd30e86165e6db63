"""The ``--tumors`` file."""

import pytest

from difftumor.errors import ConfigError
from difftumor.synthesis.spec import TumorPlan, TumorSpec, read_plan


def plan(folder, text):
    path = folder / "tumors.yaml"
    path.write_text(text)
    return read_plan(path)


def test_entries_keep_their_order_and_the_seed_is_theirs(tmp_path):
    found = plan(
        tmp_path,
        """
seed: 7
tumors:
- {size: tiny, count: 2}
- generator: handcrafted
  preset: reader
  contrast_hu: {uniform: [-40, -20]}
  location: {point_mm: [1, 2, 3]}
""",
    )
    first, second = (
        {"size": "tiny", "count": 2},
        {
            "generator": "handcrafted",
            "preset": "reader",
            "contrast_hu": {"uniform": [-40, -20]},
            "location": {"point_mm": [1, 2, 3]},
        },
    )
    assert found == TumorPlan(tuple(TumorSpec.from_dict(entry, where="test") for entry in (first, second)), 7)


def test_a_bare_list_is_enough_and_no_seed_is_none(tmp_path):
    assert plan(tmp_path, "- {}\n- size: large\n") == TumorPlan((TumorSpec(), TumorSpec(size="large")), None)
    assert plan(tmp_path, "tumors: [{}]\nseed: 0\n").seed == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("no list of tumors", "tumors:")),
        ("tumors:", ("no list of tumors",)),
        ("tumors: []", ("no list of tumors",)),
        ("tumors: tiny", ("no list of tumors",)),
        ("tumors: {size: tiny}", ("no list of tumors",)),
        ("just words", ("no list of tumors",)),
        ("tumors: [", ("cannot be read", "YAML")),
        ("tumors:\n- size: *nothing\n", ("cannot be read", "YAML")),
        ("tumors:\n- {}\nseeds: 3\n", ("unknown field 'seeds'", "seed and tumors")),
        ("tumors:\n- {}\nseed: one\n", ("seed is 'one'", "whole number")),
        ("tumors:\n- {}\nseed: 1.5\n", ("seed is 1.5",)),
        ("tumors:\n- {}\nseed: true\n", ("seed is True",)),
        ("tumors:\n- {}\n- {sise: tiny}\n", ("tumors[1]", "unknown field 'sise'")),
        ("tumors:\n- {}\n- {contrast_hu: dark}\n", ("tumors[1]", "contrast_hu is 'dark'")),
        ("tumors:\n- {preset: best}\n", ("tumors[0]", "preset is 'best'")),
        ("tumors:\n- {size: [tiny, small]}\n", ("tumors[0]", "size is ['tiny', 'small']")),
        ("tumors:\n- {? [1, 2] : 3}\n", ("tumors",)),
        ("tumors:\n- tiny\n", ("tumors[0] is 'tiny'",)),
        ("- 5\n", ("tumors[0] is 5",)),
    ],
)
def test_errors_name_file_and_field_in_one_sentence(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"--tumors {tmp_path / 'tumors.yaml'}")
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "bytes.yaml"):
        with pytest.raises(ConfigError) as caught:
            read_plan(path)
        assert str(caught.value).startswith(f"--tumors {path} cannot be read (")
