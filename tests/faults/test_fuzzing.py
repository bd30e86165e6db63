"""The readers of what others have written, on input that nobody thought of: they return what is there, or say why not.

`make test` tries the same few examples each time, `make fuzz` thousands of new ones.
"""

import gzip
import json
import struct
import tempfile
from dataclasses import asdict, fields
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from difftumor.datasets.cases import read_cases, write_case_list
from difftumor.datasets.sources import read_label_table
from difftumor.errors import DiffTumorError
from difftumor.models.artifact_config import ArtifactConfig
from difftumor.scans.nifti import read_ct, read_labels, write_labels
from difftumor.synthesis.records import SourceRecord, TextureRecord, TumorRecord
from difftumor.synthesis.scan.record import read_record
from difftumor.synthesis.spec import TumorSpec, read_plan
from tests.faults.test_malformed_nifti import ONE, TWO, sound

pytestmark = [
    pytest.mark.harms(60),  # the examples of the profile "quick"
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::difftumor.scans.hounsfield.ScanWarning"),
    pytest.mark.filterwarnings("ignore:Extension size is not a multiple"),
]
_TEMPORARY = tempfile.TemporaryDirectory(prefix="fuzz_")
FOLDER = Path(_TEMPORARY.name)
SOUND = {"one": bytes(sound(FOLDER / "x.nii")), "two": bytes(sound(FOLDER / "x.nii", cls=nib.Nifti2Image))}
LAYOUT = {"one": ONE, "two": TWO}
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 64, 348, 352, 368, 512, 544, 560, 32767, 2**31 - 1, -(2**31)]),
    st.sampled_from([0.5, 1e-30, 1e30, 3000.0, float("nan"), float("inf"), -float("inf")]),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=32),
)


def read_or_refused(read, *arguments, named="", **options):
    """Return what a reader returns, or None if it refuses in one line that names something."""
    try:
        return read(*arguments, **options)
    except DiffTumorError as error:
        said = str(error)
    assert "\n" not in said
    assert named in said
    return None


@st.composite
def changed_files(draw):
    """Draw a NIfTI file of which some fields, bytes and the length have changed."""
    version = draw(st.sampled_from(["one", "two"]))
    content = bytearray(SOUND[version])
    for _ in range(draw(st.integers(0, 3))):
        at, kind = LAYOUT[version][draw(st.sampled_from(sorted(LAYOUT[version])))]
        at += draw(st.integers(0, 4)) * struct.calcsize(kind)
        content[at : at + struct.calcsize(kind)] = _packed(kind, draw(NUMBERS), draw)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(content) - 1))
        content[at] = draw(st.integers(0, 255))
    content = content[: len(content) - draw(st.sampled_from([0, 0, 0, 0, 1, 100, 480, 490]))]
    content += bytes(draw(st.sampled_from([0, 0, 0, 1, 16, 60, 5000])))
    return bytes(content)


def _packed(kind, value, draw):
    size = struct.calcsize(kind)
    if kind in "fd":
        return struct.pack(kind, np.float32(value))
    if kind in "bBhiq" and isinstance(value, int):
        return (value % 2 ** (8 * size)).to_bytes(size, "little")
    return draw(st.binary(min_size=size, max_size=size))


@given(content=changed_files(), packed=st.booleans())
def test_nifti_is_read_as_nibabel_reads_it_or_refused(content, packed):
    path = FOLDER / ("ct.nii.gz" if packed else "ct.nii")
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    for read, options, step in ((read_ct, {"accept_hu": True}, 0), (read_labels, {}, 0.05)):
        if (found := read_or_refused(read, path, named=path.name, **options)) is None:
            continue
        image = nib.load(path)
        unit = {1: 1000.0, 3: 0.001}.get(int(image.header["xyzt_units"]) % 8, 1.0)
        expected = np.asarray(image.dataobj, np.float64).reshape(found.grid.shape, order="F")
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found.data, expected, rtol=1e-5, atol=max(1e-5 * largest, step, 1e-30))
        np.testing.assert_allclose(found.grid.affine[:3] / unit, image.affine[:3], rtol=1e-5, atol=1e-5)
        write_labels(FOLDER / "labels.nii", np.ones(found.grid.shape, np.uint8), found)
        assert read_labels(FOLDER / "labels.nii").grid.matches(found.grid)


@given(at=st.integers(0, 10**6), bits=st.integers(1, 255), cut=st.integers(0, 30))
def test_compressed_files_with_changed_bytes_are_whole_or_refused(at, bits, cut):
    content = bytearray(gzip.compress(SOUND["one"], 1, mtime=0))
    content[at % len(content)] ^= bits
    (FOLDER / "ct.nii.gz").write_bytes(content[: len(content) - (cut if cut < 20 else 0)])
    if (found := read_or_refused(read_ct, FOLDER / "ct.nii.gz", named="ct.nii.gz")) is not None:
        np.testing.assert_array_equal(found.data, read_ct(_written("x.nii", SOUND["one"])).data)


def _written(name, content):
    file = FOLDER / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return file


def values_with(words):
    """Draw whatever JSON can hold, with words that mean something among its texts and keys."""
    texts = st.sampled_from(words) | st.text(max_size=8)
    leaves = st.none() | st.booleans() | NUMBERS | texts
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
    )


DISTRIBUTIONS = st.builds(
    lambda kind, numbers: {kind: numbers},
    st.sampled_from(["uniform", "normal", "integers", "choice", "fixed"]),
    st.lists(NUMBERS | st.floats(0, 50) | st.integers(0, 20), max_size=3),
)
WORDS = [
    "early",
    "tiny",
    "mix",
    "paper",
    "diffusion",
    "handcrafted",
    "copy_paste",
    "uniform",
    "slice",
    "salt",
    "reader",
]
SPECS = st.dictionaries(
    st.sampled_from([*(field.name for field in fields(TumorSpec)), "preset", "other"]),
    values_with([*WORDS, "point_mm", "segment", "count", "size", "diameter_mm"]) | DISTRIBUTIONS | st.floats(0, 30),
    max_size=4,
)


@given(values=SPECS | values_with(WORDS))
def test_a_tumor_is_what_it_says_or_refused(values):
    if (spec := read_or_refused(TumorSpec.from_dict, values, where="tumors[0]", named="tumors[0]")) is None:
        return
    assert TumorSpec.from_dict(spec.to_plain(), where="") == spec
    again = read_plan(_written("plan.yaml", yaml.safe_dump({"tumors": [spec.to_plain()], "seed": 3})))
    assert again.tumors == (spec,)
    assert again.seed == 3


PLAN = "tumors:\n- generator: handcrafted\n  size: {tiny: 1, small: 2}\n  diameter_mm: {uniform: [5, 9]}\nseed: 7\n"


@given(edits=st.lists(st.tuples(st.integers(0, len(PLAN)), st.integers(0, 5), st.text(max_size=5)), max_size=4))
def test_a_plan_with_changed_letters_is_read_or_refused(edits):
    text = PLAN
    for at, removed, added in edits:
        text = text[:at] + added + text[at + removed :]
    if (plan := read_or_refused(read_plan, _written("plan.yaml", text), named="plan.yaml")) is not None:
        again = yaml.safe_dump([spec.to_plain() for spec in plan.tumors])
        assert read_plan(_written("plan.yaml", again)).tumors == plan.tumors


TEXTURE = TextureRecord(kind="gaussian", mean_hu=-40.0, sd_hu=12.0, grain=1.2, blur_sigma_mm=0.6)
SOURCE = SourceRecord(case="a", tumor=1, sha256="0" * 64, turned=True, flipped=(True, False, True), shift_hu=3.0)
RECORD = TumorRecord(
    generator="handcrafted", organ="liver", size="tiny", radius_mm=4.0, half_axes_mm=(4.0, 4.0, 5.0),
    deformation_sigma_mm=1.0, shape_seed=1, center_voxel=(10, 11, 12), center_mm=(1.0, 2.0, 3.0), may_leave_organ=False,
    texture_seed=2, blur_sigma_voxels=0.6, texture=TEXTURE,
)  # fmt: skip
JSON_VALUES = values_with(["handcrafted", "salt", "liver", "tiny", "kind", "case", "path"])


@given(
    changes=st.dictionaries(st.sampled_from([field.name for field in fields(TumorRecord)]), JSON_VALUES, max_size=3),
    inner=st.dictionaries(st.sampled_from([*asdict(TEXTURE), *asdict(SOURCE)]), JSON_VALUES, max_size=2),
    copied=st.booleans(),
)
def test_the_record_of_a_tumor_is_read_back_or_refused(changes, inner, copied):
    whole = RECORD.to_dict()
    if copied:
        whole |= {"generator": "copy_paste", "texture": None, "source": asdict(SOURCE)}
    name = "source" if copied else "texture"
    whole[name] = {**whole[name], **{key: value for key, value in inner.items() if key in whole[name]}}
    if (record := read_or_refused(TumorRecord.from_json, json.dumps({**whole, **changes}))) is None:
        return
    assert TumorRecord.from_json(record.to_json()) == record
    assert record.equivalent_radius_mm > 0
    assert record.moved((1, 2, 3)).moved((-1, -2, -3)) == record


@pytest.fixture(scope="module")
def scan_record():
    inputs = {
        "ct": {"path": "/a/ct.nii", "sha256": "0" * 64}, "organ_masks": [], "organ_labels": [], "tumor_labels": [],
        "tumor_masks": [], "segments": None,
    }  # fmt: skip
    return {
        "format_version": 1, "request": {"organ": "liver", "tumors": [], "quality_gate": None}, "inputs": inputs,
        "models": {}, "device": "cpu", "tumors": [{"record": RECORD.to_dict()}], "sources": {},
    }  # fmt: skip


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_record_of_a_scan_is_read_or_refused(scan_record, data):
    content = json.loads(json.dumps(scan_record))
    for _ in range(data.draw(st.integers(0, 2))):
        place = content
        while isinstance(place, dict) and place:
            key = data.draw(st.sampled_from(sorted(place)))
            if not isinstance(place[key], dict) or data.draw(st.booleans()):
                place[key] = data.draw(JSON_VALUES)
                break
            place = place[key]
    if (read := read_or_refused(read_record, _written("record.json", json.dumps(content)))) is not None:
        assert read.host == Path("/a/ct.nii") or content["inputs"] != scan_record["inputs"]
        assert len(read.tumors) == len(content["tumors"])


IMAGES = ["a.nii.gz", "b.nii", "sub/c.nii.gz", ".", "gone.nii"]
ENTRIES = st.dictionaries(
    st.sampled_from(["image", "label", "labels", "id", "patient", "tumor_organs", "fingerprint", "other"]),
    st.sampled_from(IMAGES) | values_with([*IMAGES, "liver", "none"]),
    max_size=4,
)
LISTS = values_with(IMAGES) | st.fixed_dictionaries(
    {"training": st.lists(ENTRIES | st.sampled_from(IMAGES), max_size=3)},
    optional={
        "labels": values_with(["background", "liver", "0", "1"]),
        "validation": st.lists(ENTRIES, max_size=2) | JSON_VALUES,
        "dataset": JSON_VALUES,
        "regions_class_order": st.lists(st.integers(0, 3), max_size=3),
    },
) | st.lists(ENTRIES, max_size=3)  # fmt: skip


def _check_list(file):
    for name in IMAGES[:3]:
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).touch()
    if (cases := read_or_refused(read_cases, file, named=file.name)) is None:
        return
    assert all(case.image.is_file() for case in cases.cases)
    write_case_list(FOLDER / "again.json", cases, name="again")
    again = read_cases(FOLDER / "again.json")
    assert [(case.id, case.image.resolve(), case.labels, case.patient) for case in again.cases] == [
        (case.id, case.image.resolve(), case.labels, case.patient)
        for case in sorted(cases.cases, key=lambda case: case.id in cases.validation_ids)
    ]
    assert again.label_names == cases.label_names


@given(content=LISTS)
def test_lists_in_json_are_read_or_refused(content):
    _check_list(_written("list.json", json.dumps(content)))


CELLS = st.sampled_from([*IMAGES, '"', "#", "", " ", "\t", "\0", "x;y"]) | st.text(max_size=6)


@given(
    rows=st.lists(st.lists(CELLS, max_size=4), max_size=4),
    names=st.lists(st.sampled_from(["image", "labels", "id", "patient", "tumor_organs", " IMAGE "]), max_size=4),
    between=st.sampled_from([",", "\t", " "]),
    end=st.sampled_from(["\n", "\r\n", "\r", "\x85"]),
)
def test_lists_in_text_and_tables_are_read_or_refused(rows, names, between, end):
    text = end.join(between.join(row) for row in rows)
    _check_list(_written("list.txt", text))
    _check_list(_written("list.csv", end.join([",".join(names), text])))


@given(content=values_with(["background", "liver", "tumor", "labels", "0", "1", "2"]))
def test_tables_of_labels_are_read_or_refused(content):
    for text in (json.dumps(content), yaml.safe_dump(content)):
        if (names := read_or_refused(read_label_table, _written("labels.yaml", text), named="labels.yaml")) is None:
            continue
        assert names
        assert all(isinstance(name, str) and 0 <= number < 2**32 for name, number in names.items())
        assert read_label_table(_written("labels.json", json.dumps(names))) == names


CONFIG = ArtifactConfig(
    kind="segmenter",
    architecture={"name": "unet", "channels": [8, 16]},
    preprocessing={"spacing_mm": [1.0, 1.0, 1.0], "window_hu": [-175.0, 250.0], "crop": [16, 16, 16]},
    weights_sha256="0" * 64,
)


@given(
    changes=st.dictionaries(st.sampled_from([field.name for field in fields(ArtifactConfig)]), JSON_VALUES, max_size=2)
)
def test_descriptions_of_artifacts_are_read_back_or_refused(changes):
    file = Path("config.json")
    text = json.dumps({**json.loads(CONFIG.to_json()), **changes})
    if (config := read_or_refused(ArtifactConfig.from_json, text, file, named="config.json")) is None:
        return
    assert ArtifactConfig.from_json(config.to_json(), Path("config.json")).identity == config.identity
