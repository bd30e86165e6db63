"""The jobs of cross-organ transfer: for every fold, autoencoder, diffusion models, segmenters, predictions, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from difftumor.cli.many import SUMMARY_FILE
from difftumor.datasets.cases import CaseList, read_cases, split_by_ids, split_lists, write_case_list
from difftumor.datasets.sources import load_listing
from difftumor.evaluation.transfer.cells import TransferCell
from stages.cluster.options import ClusterOptions
from studies.jobs.graph import Graph, Node, Part, Value
from studies.transfer.options import ORGANS, Size, StageOption, TransferOptions

# Where the source is the target: annotated and made tumors together, or what the other kinds are compared with there.
AT_HOME = ("mixed", "handcrafted_alone")
# What is not made without diffusion models of a size.
SIZE_CLASSES: Mapping[Size, tuple[str, ...]] = {
    "early": ("early", "tiny", "small", "mix"),
    "late": ("medium", "large", "mix"),
}


@dataclass(frozen=True)
class MadeData:
    """Data that a job makes: they are known by what makes them, and need not be there yet.

    Args:
        node: The job.
        cases: That it makes.
    """

    node: Node
    cases: CaseList


class TransferGraph(Graph):
    """The jobs of the study.

    Args:
        options: Of the study.
        theirs: Of its stages.
        folder: Of the study.
        cluster: Where the jobs are to run; None for here.
        made: Data that jobs make, by the folder that the options name.
    """

    def __init__(
        self,
        options: TransferOptions,
        theirs: Sequence[StageOption],
        folder: Path,
        cluster: ClusterOptions | None = None,
        made: Mapping[Path, MadeData] | None = None,
    ) -> None:
        super().__init__(folder, cluster)
        self._made = made or {}
        self.options = options
        self.theirs = theirs
        self.cells: dict[TransferCell, Node] = {}
        self._folds: dict[str, tuple[Path, ...]] = {}
        self._tests: dict[tuple[str, int], tuple[Path | Part, Sequence[str]]] = {}
        for fold in options.folds:
            for target in options.targets:
                for source in options.sources:
                    self._add_cells(source, target, fold)

    def _add_cells(self, source: str, target: str, fold: int) -> None:
        """Add the cells of a source and a target."""
        for backbone in self.options.backbones:
            for tumors in self.options.tumors:
                # A segmenter has one organ, so that none learns the annotated tumors of several elsewhere.
                if (tumors in AT_HOME and not _is_at_home(source, target)) or (tumors == "real" and "+" in source):
                    continue
                for number in self.options.annotations if tumors in ("diffusion", "mixed") else ("all",):
                    for seed in self.options.seeds:
                        annotations = None if number == "all" else int(number)
                        cell = TransferCell(
                            source=source, target=target, backbone=backbone, tumors=tumors, fold=fold, seed=seed,
                            annotations=annotations,
                        )  # fmt: skip
                        self.cells[cell] = self._evaluated(cell)

    def _evaluated(self, cell: TransferCell) -> Node:
        """Return the evaluation of a cell: its segmenter, predictions of the target's held-out patients, scores."""
        elsewhere = cell.tumors == "real" and cell.source != cell.target
        test, files, lacks = self._test(cell.target, cell.fold)
        model = self._segmenter(cell)
        name = f"{model.name}_in_{cell.target}" if elsewhere else model.name
        # A segmenter of another organ is judged by its tumors alone, inside of the target organ.
        within: tuple[str | Path | Part, ...] = (
            ("--organ", cell.target, "--organ-mask", test) if elsewhere else ("--organ-filter", "predicted")
        )
        curves = ["--probabilities"] if self.options.prediction.probabilities else []
        predicted = self.command(
            "predict",
            f"predict_{name}",
            ["--ct", test, "--model", model, *within, "--overlap", str(self.options.prediction.overlap), *curves],
            results=files,
            replacing=["--overwrite"],
            gpu=True,
            lacks=lacks,
        )
        only = ["--tumor-only"] if elsewhere else []
        return self.command(
            "evaluate",
            f"evaluate_{name}",
            ["--predictions", predicted, "--labels", test, "--organ", cell.target, *only],
            results=("summary.json",),
            replacing=["--overwrite"],
            lacks=lacks,
        )

    def _segmenter(self, cell: TransferCell) -> Node:
        """Return the training of a cell's segmenter, which several cells may share."""
        organ = cell.source if cell.tumors == "real" else cell.target
        backbone, _, size = cell.backbone.partition("_")
        root, lacks = self._list(organ, cell.fold)
        # At home, hand-crafted tumors are beside the annotated ones, as Hu et al.'s row of Table 2 has them.
        both = cell.tumors == "mixed" or (cell.tumors == "handcrafted" and _is_at_home(cell.source, cell.target))
        made = cell.tumors.removesuffix("_alone")
        values: dict[str, Value] = {
            "tumors": "mixed" if both else made, "fold": 0, "seed": cell.seed, "data.root": _value(root),
            "autoencoder.on_overlap": "refuse",
        }  # fmt: skip
        if both:
            generator = "handcrafted" if made == "handcrafted" else "diffusion"
            names = ("diffusion", "handcrafted", "copy_paste")
            values |= {f"synthesis.generators.{name}": float(name == generator) for name in names}
        words = ["real_and_handcrafted" if both and made == "handcrafted" else made, organ]
        if cell.tumors != "real":
            healthy = self.options.healthy.of(organ)
            lacks = lacks or ("" if healthy else f"healthy.{organ} is not given")
            values["data.healthy_root"] = None if healthy is None else _value(self._known(healthy, healthy, "all"))
            values |= {"synthesis.early_model": None, "synthesis.late_model": None}
            for group, classes in SIZE_CLASSES.items():
                if group not in self.options.sizes:
                    values |= {f"synthesis.sizes.{name}": 0.0 for name in classes}
        if cell.tumors in ("diffusion", "mixed"):
            words.insert(1, f"{cell.source}_in")
            for stage in self.options.sizes:
                values[f"synthesis.{stage}_model"] = self._diffusion(cell.source, stage, cell.fold, cell.annotations)
            if cell.annotations is not None:
                words.append(f"{cell.annotations}_tumors")
        options = [f"organ={organ}", f"backbone={backbone}", *([f"backbone.size={size}"] if size else [])]
        name = "_".join(["segmenter", *words, cell.backbone, f"fold{cell.fold}", f"seed{cell.seed}"])
        return self.stage(
            "segmentation", name, [*options, *self._given("segmentation", organ)], values,
            kind=f"segmentation {cell.backbone}", lacks=lacks,
        )  # fmt: skip

    def _diffusion(self, source: str, size: Size, fold: int, annotations: int | None) -> Node:
        organs = source.split("+")
        lists = [self._list(organ, fold) for organ in organs]
        lacks = next((lacks for _, lacks in lists if lacks), "")
        values: dict[str, Value] = {
            "fold": 0, "data.root": _value(lists[0][0]), "autoencoder.on_overlap": "refuse",
            "autoencoder.artifact": self._autoencoder(),
        }  # fmt: skip
        if annotations is not None:
            values["data.max_tumors"] = annotations
        if len(organs) > 1:
            more = zip(organs[1:], lists[1:], strict=True)
            values["more_organs"] = [{"organ": organ, "root": str(_path(root))} for organ, (root, _) in more]
        options = [f"organ={organs[0]}", f"tumor_stage={size}", *self._given("diffusion", organs[0])]
        few = "" if annotations is None else f"_{annotations}_tumors"
        return self.stage("diffusion", f"diffusion_{source}_{size}{few}_fold{fold}", options, values, lacks=lacks)

    def _autoencoder(self) -> Node | str:
        """Return the autoencoder of all folds: the user's, or one that learns the healthy scans of all organs."""
        if self.options.autoencoder is not None:
            return str(self.options.autoencoder)
        values: dict[str, Value] = {"data.root": None if self._hosts is None else _value(self._hosts)}
        lacks = "" if self._hosts else "neither autoencoder nor a list of healthy scans is given"
        return self.stage("autoencoder", "autoencoder", self._given("autoencoder"), values, lacks=lacks)

    @cached_property
    def _hosts(self) -> Path | Part | None:
        """The list of the healthy scans of all organs; without labels, whose numbers differ from list to list."""
        roots = {organ: root for organ in ORGANS if (root := self.options.healthy.of(organ)) is not None}
        if not roots:
            return None
        cases = [
            replace(case, id=f"{organ}_{case.id}", labels=None)
            for organ, root in roots.items()
            for case in self._cases(root).cases
        ]
        once = tuple({case.image.resolve(): case for case in cases}.values())
        file = self._write("healthy.json", CaseList(once, {}, self.folder))
        return self._known(next(iter(roots.values())), file, "all") if len(set(roots.values())) == 1 else file

    def _cases(self, root: Path) -> CaseList:
        return self._made[root].cases if root in self._made else read_cases(root)

    def _known(self, root: Path, file: Path, what: str) -> Path | Part:
        """Return a list of data as jobs take it: of those that a job makes, it is a part of what that leaves."""
        return Part(self._made[root].node, what, file) if root in self._made else file

    def _list(self, organ: str, fold: int) -> tuple[Path | Part, str]:
        """Return an organ's list with the patients of a fold as validation cases, and what lacks."""
        root = self.options.data.of(organ)
        if root is None:
            return Path(f"data.{organ}"), f"data.{organ} is not given"
        count, seed = self.options.fold_count, self.options.fold_seed
        if organ not in self._folds:
            folder = self.folder / "lists" / organ
            self._folds[organ] = split_lists(self._cases(root), count=count, seed=seed, folder=folder)
        return self._known(root, self._folds[organ][fold], f"fold {fold} of {count}, seed {seed}"), ""

    def _test(self, organ: str, fold: int) -> tuple[Path | Part, Sequence[str], str]:
        """Return the list of a fold's patients alone, the files that predictions of them leave, and what lacks."""
        known, lacks = self._list(organ, fold)
        root = self.options.data.of(organ)
        if lacks or root is None:
            return known, (), lacks
        if (organ, fold) not in self._tests:
            file, cases = _path(known), self._cases(root)
            ids = [case.id for case in load_listing(file).cases if case.validation]
            _, held_out = split_by_ids(cases.cases, ids)
            written = self._write(f"{organ}/test{fold}.json", CaseList(held_out, cases.label_names, file))
            test = Part(known.node, f"test of {known.name}", written) if isinstance(known, Part) else written
            self._tests[organ, fold] = test, (SUMMARY_FILE, *(f"{case.id}.nii.gz" for case in held_out))
        return *self._tests[organ, fold], ""

    def _write(self, name: str, cases: CaseList) -> Path:
        """Write a list of the study; jobs are known by its content, so that writing it again changes nothing."""
        file = self.folder / "lists" / name
        write_case_list(file, cases, name=file.stem)
        return file

    def _given(self, stage: str, organ: str = "") -> list[str]:
        """Return the options that the user gives to a stage, for all organs and then for one."""
        return [
            *(each.word for each in self.theirs if each.stage == stage and not each.organ),
            *(each.word for each in self.theirs if each.stage == stage and each.organ == organ and organ),
        ]


def _path(known: Path | Part) -> Path:
    return known.output if isinstance(known, Part) else known


def _value(known: Path | Part) -> Value:
    """Return a list as an option of a stage."""
    return known if isinstance(known, Part) else str(known)


def _is_at_home(source: str, target: str) -> bool:
    """Whether the tumors of the target are among those that were learned."""
    return target in source.split("+")
