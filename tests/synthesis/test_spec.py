"""What a user may ask of tumors, and what is said where it cannot be."""

import dataclasses
import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difftumor.errors import ConfigError
from difftumor.synthesis.distributions import Distribution, fixed, uniform
from difftumor.synthesis.spec import Location, Satellites, TumorPlan, TumorSpec, preset_fields, read_plan

EVERYTHING = {
    "generator": "handcrafted",
    "count": {"integers": [2, 4]},
    "size": "early",
    "diameter_mm": {"uniform": [8, 30]},
    "irregularity": 0.5,
    "location": {"point_mm": [1, -2.5, 3]},
    "placement": "slice",
    "vessel_clearance_mm": 2,
    "contrast_hu": {"normal": [-30, 5]},
    "blur_mm": {"choice": [0, 1]},
    "blur_share": None,
    "texture": "salt",
    "grain": 2,
    "scale_texture": False,
    "host_noise_mm": {"uniform": [1, 3]},
    "mass_effect": 30,
    "capsule_hu": 120,
    "may_overlap": True,
    "satellites": {"count": 2, "size": "small", "diameter_mm": 5, "distance_mm": {"uniform": [1, 2]}},
}


def read(**fields):
    return TumorSpec.from_dict(fields, where="tumors[0]")


def test_every_field_is_read():
    assert set(EVERYTHING) == {field.name for field in dataclasses.fields(TumorSpec)}
    spec = read(**EVERYTHING)
    assert spec.generator == "handcrafted"
    assert spec.count == Distribution("integers", (2.0, 4.0))
    assert spec.weights == {"early": 1.0}
    assert read(size={"tiny": 3, "late": 1}).weights == {"tiny": 3.0, "late": 1.0}
    assert spec.diameter_mm == uniform(8, 30)
    assert spec.irregularity == fixed(0.5)
    assert spec.location == Location(point_mm=(1.0, -2.5, 3.0))
    assert spec.placement == "slice"
    assert spec.vessel_clearance_mm == fixed(2)
    assert spec.contrast_hu == Distribution("normal", (-30.0, 5.0))
    assert spec.blur_mm == Distribution("choice", (0.0, 1.0))
    assert (spec.texture, spec.grain) == ("salt", fixed(2))
    assert (spec.scale_texture, spec.host_noise_mm) == (False, uniform(1, 3))
    assert read(blur_share={"uniform": [0, 0.25]}).blur_share == uniform(0, 0.25)
    assert (spec.mass_effect, spec.capsule_hu, spec.may_overlap) == (fixed(30), fixed(120), True)
    assert spec.satellites == Satellites(
        count=fixed(2), size={"small": 1.0}, diameter_mm=fixed(5), distance_mm=uniform(1, 2)
    )


def test_what_is_not_said_is_one_early_tumor_of_a_network_without_effects():
    spec = read()
    assert spec == TumorSpec()
    assert (spec.generator, spec.count, spec.weights) == ("diffusion", fixed(1), {"early": 1.0})
    assert (spec.diameter_mm, spec.vessel_clearance_mm, spec.contrast_hu, spec.satellites) == (None,) * 4
    assert (spec.mass_effect, spec.capsule_hu, spec.may_overlap) == (fixed(0), fixed(0), False)
    assert (spec.blur_mm, spec.blur_share, spec.scale_texture, spec.host_noise_mm) == (None, None, True, None)
    # η of Hu et al. 2023, Table 1.
    assert spec.grain == uniform(1.1, 1.5)


@pytest.mark.parametrize("fields", [{}, EVERYTHING, {"count": "paper"}, {"location": {"segment": 4}}, {"size": "mix"}])
def test_plain_values_give_it_back_and_say_every_field(fields):
    spec = read(**fields)
    plain = spec.to_plain()
    assert set(plain) == set(EVERYTHING)
    assert read(**plain) == spec
    assert read(**plain).to_plain() == plain
    assert pickle.loads(pickle.dumps(spec)) == spec


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["diffusion", "handcrafted"]),
    st.sampled_from(["anywhere", "central", "peripheral", {"segment": 2}, {"point_mm": [0, 1.5, -9]}]),
    st.one_of(st.none(), st.floats(1, 400), st.just({"uniform": [3, 90]})),
    st.dictionaries(st.sampled_from(["tiny", "early", "large", "mix"]), st.floats(0.01, 9), min_size=1),
    st.floats(-500, 500),
)
def test_the_round_trip_is_exact(generator, location, diameter_mm, size, contrast_hu):
    chosen = {"size": size} if diameter_mm is None else {"diameter_mm": diameter_mm}
    spec = read(generator=generator, location=location, contrast_hu=contrast_hu, count=3, **chosen)
    assert read(**spec.to_plain()) == spec


def test_the_reader_preset_sets_what_the_visual_turing_test_has_and_fields_go_on_top():
    assert preset_fields("training") == {}
    reader = read(preset="reader")
    assert (reader.vessel_clearance_mm, reader.mass_effect, reader.capsule_hu) == (fixed(0), fixed(30), fixed(120))
    assert read(preset="training") == TumorSpec()
    mine = read(preset="reader", mass_effect=10, vessel_clearance_mm=None)
    assert (mine.mass_effect, mine.vessel_clearance_mm, mine.capsule_hu) == (fixed(10), None, fixed(120))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sise": "tiny"}, ("unknown field 'sise'", "preset", "generator")),
        ({3: 4}, ("unknown field '3'",)),
        ({"preset": "best"}, ("preset is 'best'", "training or reader")),
        ({"generator": "magic"}, ("generator is 'magic'", "diffusion or handcrafted")),
        ({"generator": ["diffusion"]}, ("generator is ['diffusion']",)),
        ({"count": "many"}, ("count is 'many'",)),
        ({"count": None}, ("count is None",)),
        ({"count": -1}, ("count is -1", "1 to 1000")),
        ({"count": 1001}, ("count is 1001", "1 to 1000")),
        ({"count": 1.5}, ("count is 1.5", "whole")),
        ({"count": {"uniform": [1, 3]}}, ("count is", "whole")),
        ({"count": "paper", "diameter_mm": 9}, ("count: paper", "diameter_mm")),
        ({"size": "small", "diameter_mm": 9}, ("size and diameter_mm contradict",)),
        ({"size": "giant"}, ("'giant' is unknown",)),
        ({"size": ["tiny", "small"]}, ("size is ['tiny', 'small']",)),
        ({"size": None}, ("size is None", "tiny")),
        ({"size": 5}, ("size is 5", "tiny")),
        ({"size": {}}, ("size has no weight",)),
        ({"size": {"tiny": 0}}, ("size has no weight",)),
        ({"size": {"tiny": -1}}, ("size.tiny is -1",)),
        ({"size": {"tiny": "much"}}, ("size.tiny is 'much'",)),
        ({"size": {"tiny": True}}, ("size.tiny is True",)),
        ({"size": {"tiny": math.inf}}, ("size.tiny is inf",)),
        ({"diameter_mm": 0.5}, ("diameter_mm is 0.5", "1 to 400")),
        ({"diameter_mm": {"uniform": [10, 500]}}, ("diameter_mm is", "1 to 400")),
        ({"irregularity": 4}, ("irregularity is 4", "0 to 3")),
        ({"irregularity": None}, ("irregularity is None",)),
        ({"location": "left"}, ("location is 'left'", "central, peripheral, {point_mm")),
        ({"location": {"point_mm": [1, 2]}}, ("location is", "point_mm: [x, y, z]")),
        ({"location": {"point_mm": [1, 2, math.nan]}}, ("location is",)),
        ({"location": {"point_mm": "abc"}}, ("location is",)),
        ({"location": {"segment": 0}}, ("location is", "{segment: N}")),
        ({"location": {"segment": 1.5}}, ("location is",)),
        ({"location": {"segment": True}}, ("location is",)),
        ({"location": {"point_mm": [1, 2, 3], "segment": 1}}, ("location is",)),
        ({"location": None}, ("location is None",)),
        ({"placement": "random"}, ("placement is 'random'", "uniform or slice")),
        ({"vessel_clearance_mm": -1}, ("vessel_clearance_mm is -1", "0 to 200")),
        ({"contrast_hu": 900}, ("contrast_hu is 900", "-500 to 500")),
        ({"contrast_hu": {"normal": [0, 200]}}, ("contrast_hu is", "-500 to 500")),
        ({"blur_mm": 21}, ("blur_mm is 21", "0 to 20")),
        ({"blur_share": 1.1}, ("blur_share is 1.1", "0 to 1")),
        ({"blur_share": 0.2, "blur_mm": 1}, ("blur_mm and blur_share", "give one")),
        ({"scale_texture": 2}, ("scale_texture is 2", "true or false")),
        ({"host_noise_mm": 11}, ("host_noise_mm is 11", "0 to 10")),
        ({"texture": "velvet"}, ("texture is 'velvet'", "gaussian or salt")),
        ({"grain": 0.5}, ("grain is 0.5", "1 to 20")),
        ({"mass_effect": 101}, ("mass_effect is 101", "0 to 100")),
        ({"capsule_hu": 501}, ("capsule_hu is 501", "-500 to 500")),
        ({"may_overlap": "yes"}, ("may_overlap is 'yes'", "true or false")),
        ({"may_overlap": 1}, ("may_overlap is 1",)),
        ({"satellites": 3}, ("satellites is 3", "count, size, diameter_mm, distance_mm")),
        ({"satellites": {"number": 3}}, ("satellites is", "count, size, diameter_mm, distance_mm")),
        ({"satellites": {"count": 1.5}}, ("satellites.count is 1.5", "whole")),
        ({"satellites": {"count": 101}}, ("satellites.count is 101", "0 to 100")),
        ({"satellites": {"count": None}}, ("satellites.count is None",)),
        ({"satellites": {"distance_mm": None}}, ("satellites.distance_mm is None",)),
        ({"satellites": {"distance_mm": -1}}, ("satellites.distance_mm is -1", "0 to 200")),
        ({"satellites": {"diameter_mm": 0}}, ("satellites.diameter_mm is 0", "1 to 400")),
        ({"satellites": {"size": "giant"}}, ("'giant' is unknown",)),
        ({"satellites": {"size": ["tiny"]}}, ("satellites.size is ['tiny']",)),
        ({"satellites": {"size": {"tiny": -1}}}, ("satellites.size.tiny is -1",)),
    ],
)
def test_bad_values_are_named_in_one_sentence(fields, words):
    with pytest.raises(ConfigError) as caught:
        TumorSpec.from_dict(fields, where="tumors[3]")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("tumors[3]")
    assert all(word in message for word in words), message


def test_an_entry_that_holds_no_fields_is_refused():
    with pytest.raises(ConfigError, match=r"tumors\[2\] is 'tiny': give fields such as generator, size and count"):
        TumorSpec.from_dict("tiny", where="tumors[2]")


@pytest.mark.parametrize(
    ("fields", "groups"),
    [
        ({}, {"early"}),
        ({"size": "late"}, {"late"}),
        ({"size": "mix"}, {"early", "late"}),
        ({"size": {"tiny": 1, "large": 0}}, {"early"}),
        ({"diameter_mm": 19.9}, {"early"}),
        ({"diameter_mm": 20}, {"late"}),
        ({"diameter_mm": {"uniform": [19, 21]}}, {"early", "late"}),
        ({"size": "large", "satellites": {}}, {"early", "late"}),
        ({"size": "large", "satellites": {"size": "medium"}}, {"late"}),
        ({"size": "tiny", "satellites": {"diameter_mm": 30}}, {"early", "late"}),
    ],
)
def test_size_groups_are_those_of_all_tumors_that_can_come(fields, groups):
    assert read(**fields).size_groups == groups


def test_who_needs_the_ct():
    assert not read().needs_hu
    assert read(generator="handcrafted").needs_hu
    assert read(vessel_clearance_mm=0).needs_hu


def test_chosen_radii_are_half_of_the_largest_diameters():
    assert read().chosen_radii_mm == []
    assert read(diameter_mm={"uniform": [4, 30]}, satellites={"diameter_mm": 6}).chosen_radii_mm == [15.0, 3.0]


def test_satellites_are_like_their_tumor_but_for_size_place_and_effects():
    spec = read(**{**EVERYTHING, "satellites": {"size": "small"}})
    small = spec.of_satellites()
    # Hu et al. 2023 do not say how many or how far; Satellites does.
    assert (small.count, small.weights, small.diameter_mm) == (
        Distribution("integers", (2.0, 5.0)), {"small": 1.0}, None,
    )  # fmt: skip
    assert (small.location, small.placement, small.satellites) == (Location(), "uniform", None)
    assert (small.mass_effect, small.capsule_hu) == (fixed(0), fixed(0))
    for name in ("generator", "contrast_hu", "vessel_clearance_mm", "texture", "grain", "blur_mm", "may_overlap"):
        assert getattr(small, name) == getattr(spec, name)


def test_locations_are_said_in_words():
    words = {"central": "central", "peripheral": "peripheral"}
    assert {name: str(Location.of(name, name="location")) for name in words} == words
    assert str(read(location={"point_mm": [1, -2.5, 30]}).location) == "point (1, -2.5, 30) mm"
    assert str(read(location={"segment": 4}).location) == "segment 4"


# Files


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
