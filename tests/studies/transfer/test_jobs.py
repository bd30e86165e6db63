"""Cross-organ transfer: which jobs there are, what they share, and what a changed option runs again."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from difftumor.datasets.cases import read_cases
from studies.jobs.states import remarks, standings
from studies.transfer.jobs import TransferGraph
from studies.transfer.options import read_words
from studies.transfer.study import main

SMALL = (
    "sources=[liver,pancreas]", "targets=[liver,pancreas]", "backbones=[unet]", "folds=[0,1]", "fold_count=2",
    "sizes=[early]", "tumors=[real,handcrafted,diffusion,mixed]",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Options that name lists of four scans with tumors and two healthy ones, for two organs; of empty files."""
    folder, words = tmp_path_factory.mktemp("data"), []
    for organ in ("liver", "pancreas"):
        for option, count in (("data", 4), ("healthy", 2)):
            place = folder / f"{organ}_{option}"
            place.mkdir()
            entries = []
            for number in range(count):
                for kind in ("image", "label"):
                    (place / f"{kind}{number}.nii.gz").write_bytes(bytes(number))
                entries.append({"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz"})
            labels = {"background": 0, organ: 1, f"{organ}_tumor": 2}
            (place / "dataset.json").write_text(json.dumps({"labels": labels, "training": entries}))
            words.append(f"{option}.{organ}={place}")
    return words


def declared(folder, *words):
    return TransferGraph(*read_words(words), folder)


def kinds(study):
    return dict(Counter(node.kind for node in study.nodes.values()))


def test_the_papers_grid_is_135_segmenters_behind_thirty_diffusion_models_and_one_autoencoder(tmp_path):
    # DiffTumor's own cells: made tumors elsewhere, annotated and made ones at home.
    study = declared(tmp_path, "tumors=[diffusion,mixed]")
    own = [cell for cell in study.cells if (cell.tumors == "mixed") == (cell.source == cell.target)]
    assert len(own) == 135
    counts = kinds(study)
    assert (counts["diffusion"], counts["autoencoder"]) == (30, 1)
    assert {node.lacks for node in study.nodes.values()} == {
        "data.liver is not given", "data.pancreas is not given", "data.kidney is not given",
        "neither autoencoder nor a list of healthy scans is given",
    }  # fmt: skip


def test_cells_share_what_does_not_depend_on_the_source(tmp_path, data):
    study = declared(tmp_path, *SMALL, *data)
    # Per fold: 2 real (judged in both organs), 2 hand-crafted alone and 2 beside real ones, 4 diffusion, 2 mixed.
    assert kinds(study) == {
        "autoencoder": 1, "diffusion": 4, "segmentation unet": 24, "predict": 28, "evaluate": 28
    }  # fmt: skip
    alone = declared(tmp_path, *SMALL, *data, "tumors=[handcrafted,handcrafted_alone]")
    assert kinds(alone)["segmentation unet"] == 8  # at home alone is elsewhere
    assert len(study.cells) == 2 * (3 * 4 + 2)
    assert not any(node.lacks for node in study.nodes.values())


def trained_on(study, *, source, target, tumors):
    """Segmenter of a cell of fold 0, as its evaluation's prediction takes it."""
    (cell,) = [
        cell for cell in study.cells
        if (cell.source, cell.target, cell.tumors, cell.fold) == (source, target, tumors, 0)
    ]  # fmt: skip
    predicted = study.cells[cell].needs[0]
    return predicted.needs[0], predicted, study.cells[cell]


def word_after(node, option):
    return node.words[node.words.index(option) + 1]


def test_elsewhere_segmenters_see_made_tumors_only_and_real_ones_are_judged_by_tumors(tmp_path, data):
    study = declared(tmp_path, *SMALL, *data)
    made, predicted, scores = trained_on(study, source="liver", target="pancreas", tumors="diffusion")
    assert (made.config["organ"]["name"], made.config["tumors"]) == ("pancreas", "diffusion")
    assert [need.name for need in made.needs] == ["diffusion_liver_early_fold0"]
    assert made.config["synthesis"]["late_model"] is None
    assert "--organ-mask" not in predicted.words
    assert "--tumor-only" not in scores.words
    hu, *_ = trained_on(study, source="liver", target="pancreas", tumors="handcrafted")
    assert hu.config["tumors"] == "handcrafted"
    hu, *_ = trained_on(study, source="pancreas", target="pancreas", tumors="handcrafted")
    assert (hu.config["tumors"], hu.config["synthesis"]["generators"]) == (
        "mixed", {"diffusion": 0.0, "handcrafted": 1.0, "copy_paste": 0.0}
    )  # fmt: skip
    real, predicted, scores = trained_on(study, source="liver", target="pancreas", tumors="real")
    home, at_home, _ = trained_on(study, source="liver", target="liver", tumors="real")
    assert real is home
    assert (real.config["organ"]["name"], real.config["data"]["healthy_root"]) == ("liver", None)
    assert word_after(predicted, "--organ") == "pancreas"
    assert (
        predicted.words[predicted.words.index("--ct") + 1] == predicted.words[predicted.words.index("--organ-mask") + 1]
    )
    assert "--tumor-only" in scores.words
    assert word_after(at_home, "--organ-filter") == "predicted"


def test_held_out_patients_are_held_out_of_every_stage_and_predicted_once(tmp_path, data):
    study = declared(tmp_path, *SMALL, *data)
    predicted = []
    for fold in range(2):
        listed = read_cases(tmp_path / f"lists/liver/fold{fold}.json")
        test = read_cases(tmp_path / f"lists/liver/test{fold}.json")
        assert {case.image for case in test.cases} == {
            case.image for case in listed.cases if case.id in listed.validation_ids
        }
        predicted += [case.image.name for case in test.cases]
    assert sorted(predicted) == [f"image{number}.nii.gz" for number in range(4)]
    roots = {node.config["data"]["root"] for node in study.nodes.values() if node.config}
    lists = ("healthy", "liver/fold0", "liver/fold1", "pancreas/fold0", "pancreas/fold1")
    assert roots == {f"{tmp_path}/lists/{name}.json" for name in lists}
    for node in study.nodes.values():
        if node.kind == "diffusion":
            assert (node.config["fold"], node.config["autoencoder"]["on_overlap"]) == (0, "refuse")


@pytest.mark.parametrize(
    ("word", "changed"),
    [
        # Segmenters of the pancreas; not those of the liver that are judged there.
        ("segmentation.pancreas.training.epochs=500", "(real|handcrafted|real_and_handcrafted|in)_pancreas_unet"),
        ("diffusion.liver.optimizer.lr=2e-4", "(diffusion|mixed)_liver"),
        ("autoencoder.training.steps=80000", "diffusion|mixed|^autoencoder"),
        ("segmentation.data.num_workers=3", "^$"),
    ],
)
def test_a_changed_option_runs_again_what_depends_on_it(tmp_path, data, word, changed):
    before, after = (declared(tmp_path, *SMALL, *data, *more).nodes for more in ((), (word,)))
    assert set(before) - set(after) == {name for name in before if re.search(changed, name)}
    assert [node.name for node in before.values()] == [node.name for node in after.values()]


def test_an_autoencoder_of_the_users_own_needs_no_healthy_scans(tmp_path, data):
    study = declared(tmp_path, *SMALL, *data, "autoencoder=checkpoints/autoencoder", "tumors=[real]")
    assert "autoencoder" not in kinds(study)
    lists = [word for word in data if word.startswith("data.")]
    study = declared(tmp_path, *SMALL, *lists, "autoencoder=checkpoints/autoencoder")
    found = standings(study)
    assert {each.status for each in found.values() if "_real_l" in each.node.name} == {"to do"}
    assert "healthy.liver is not given" in " ".join(remarks(found))


def test_several_organs_have_all_kinds_but_real_tumors_alone(tmp_path, data):
    study = declared(tmp_path, *SMALL, *data, "sources=[liver,liver+pancreas]")
    joint = {(cell.target, cell.tumors) for cell in study.cells if "+" in cell.source}
    assert joint == {(organ, kind) for organ in ("liver", "pancreas") for kind in ("handcrafted", "diffusion", "mixed")}


def test_lists_follow_labels_and_places_of_the_data(tmp_path, data):
    declared(tmp_path, *SMALL, *data)
    (root,) = [Path(word.partition("=")[2]) for word in data if word.startswith("data.liver")]
    moved = shutil.copytree(root, tmp_path / "moved")
    listing = json.loads((moved / "dataset.json").read_text())
    listing["labels"] = {"background": 0, "liver": 2, "liver_tumor": 1}
    (moved / "dataset.json").write_text(json.dumps(listing))
    declared(tmp_path, *SMALL, *data, f"data.liver={moved}")
    test = read_cases(tmp_path / "lists/liver/test0.json")
    assert test.label_names == listing["labels"]
    assert {case.image.parent for case in test.cases} == {moved}


def test_without_early_models_no_early_tumor_is_made(tmp_path, data):
    study = declared(tmp_path, *SMALL, *data, "sizes=[late]")
    made, *_ = trained_on(study, source="liver", target="pancreas", tumors="diffusion")
    synthesis = made.config["synthesis"]
    assert synthesis["early_model"] is None
    assert {name for name, weight in synthesis["sizes"].items() if weight} == {"medium", "large"}


def test_several_organs_are_one_model(tmp_path, data):
    def models(*more):
        study = declared(tmp_path, *SMALL, *data, "sources=[liver+pancreas]", "tumors=[diffusion]", *more)
        return [node for node in study.nodes.values() if node.kind == "diffusion"]

    first, second = models()
    assert [node.name for node in (first, second)] == [
        f"diffusion_liver+pancreas_early_fold{fold}" for fold in range(2)
    ]
    (more,) = first.config["more_organs"]
    assert (more["organ"], more["root"]) == ("pancreas", f"{tmp_path}/lists/pancreas/fold0.json")
    assert {first.key, second.key}.isdisjoint(node.key for node in models("diffusion.optimizer.lr=2e-4"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sources=[liver,brain]"], "sources has 'brain': choose from liver, pancreas, kidney"),
        (["targets=[liver+pancreas]"], "targets"),
        (["folds=[0,5]"], "folds has 5, but fold_count is 2"),
        (["tumors=[]"], r"tumors is \[\]: give one or more, each once"),
        (["annotations=[0]"], "annotations"),
        (["backbones=[vnet]"], "There is no backbone 'vnet': choose from"),
        (["segmentation.optimizer.rate=1"], "Unknown option 'optimizer.rate'"),
        (["segmentation.liver.optimizer.lr=-1"], "optimizer.lr is -1: give a number above 0"),
        (["source=[liver]"], "Unknown option 'source'"),
        (["data.liver=nowhere"], "nowhere does not exist"),
        (["segmentation.liver.seed=1"], "The study sets seed of stage 'segmentation' itself"),
        (["autoencoder.liver.training.steps=5"], "One autoencoder serves all organs"),
    ],
)
def test_wrong_options_are_told_before_anything_runs(tmp_path, capsys, words, message):
    assert main(["plan", "--out", str(tmp_path), *SMALL, *words]) == 1
    error = capsys.readouterr().err
    assert re.match(f"Error: .*{message}", error)
    assert error.count("\n") == 1


@pytest.mark.slow
def test_planning_the_papers_grid_loads_nothing_heavy(tmp_path):
    probe = (
        "import sys; from studies.transfer.study import main; "
        f"main(['plan', '--out', {str(tmp_path)!r}]); "
        "print([name for name in ('torch', 'monai', 'matplotlib', 'pytorch_lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "blocked: data.kidney is not given" in done.stdout
