"""Artifacts: folders of ``config.json`` and ``model.safetensors``, the only thing that passes between stages.

An artifact is data: no pickle, no class names to import. The network is rebuilt through a fixed table
of constructors and its weights are checked by SHA-256 before they are used.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftumor.errors import ArtifactError, ConfigError, DeviceError, naming
from difftumor.files.checksums import sha256_of
from difftumor.files.results import ResultFolder
from difftumor.files.writing import folder_written_whole
from difftumor.models.artifact_config import (
    CONFIG_FILE,
    PREPROCESSING,
    ArtifactConfig,
    Kind,
    ParentReference,
    read_config,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

WEIGHTS_FILE = "model.safetensors"
# Levels, heads and the like; what is larger is the side of some tensor.
_SMALL_NUMBER = 64
# The stage that makes each kind, named in error messages.
STAGE_OF_KIND = {
    "autoencoder": "stages.autoencoder",
    "diffusion": "stages.diffusion",
    "segmenter": "stages.segmentation",
}


def _is_config(file: Path) -> bool:
    """Whether a file is the config of an artifact; other programs write files of the same name."""
    try:
        read_config(file.parent)
    except ArtifactError:
        return False
    return True


ARTIFACT_FOLDER = ResultFolder(what="artifact", mark=CONFIG_FILE, is_own=_is_config)


@dataclass(frozen=True)
class Parent:
    """An artifact as it was when a child's training loaded it.

    Args:
        path: Its folder.
        identity: Its ``ArtifactConfig.identity`` then; the folder may hold another artifact by the time of saving.
    """

    path: Path
    identity: str

    @classmethod
    def at(cls, path: Path | str) -> Parent:
        """Return what is in a folder now.

        Raises:
            ArtifactError: There is no artifact.
        """
        return cls(Path(path), read_config(path).identity)


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact.

    Args:
        path: Its folder.
        config: Its description.
        network: The network in eval mode, without gradients.
    """

    path: Path
    config: ArtifactConfig
    network: nn.Module

    @property
    def as_parent(self) -> Parent:
        """What a child trained with this one records."""
        return Parent(self.path, self.config.identity)

    def parent(self, role: str, *, path: Path | None = None, device: torch.device | str = "cpu") -> Artifact:
        """Load the artifact that this one was trained with.

        Args:
            role: For instance ``"autoencoder"``.
            path: Where it is now; by default where it was then.
            device: Where to put its weights.

        Raises:
            ArtifactError: It is missing or no longer the same.
        """
        reference = self.config.parents.get(role)
        if reference is None:
            raise ArtifactError(f"{self.path} names no {role} as its parent: train it again with its stage.")
        location = path or Path(os.path.normpath(self.path / reference.path))
        config = read_config(location)
        if config.identity != reference.identity:
            raise ArtifactError(
                f"{location} is not the {role} that {self.path} was trained with (it has changed since): "
                f"bring back the old one or train {self.path.name} again."
            )
        # What a complete child was trained with is good enough to run it.
        return load_artifact(location, device=device, allow_incomplete=True)


def build_network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build a network from an architecture description with the fixed table of constructors.

    Raises:
        ArtifactError: The name or an argument is unknown.
        DependencyError: The package of the network is not installed.
    """
    # Imported here, so that reading a description needs no torch.
    from difftumor.models.autoencoder import Autoencoder
    from difftumor.models.denoiser import Denoiser
    from difftumor.models.segmenters import SEGMENTERS, build_segmenter

    builders: dict[str, Callable[..., nn.Module]] = {"vqgan3d": Autoencoder, "factorized_unet": Denoiser}
    builders |= {segmenter: partial(build_segmenter, segmenter) for segmenter in SEGMENTERS}
    arguments = dict(architecture)
    name = arguments.pop("name", None)
    if name not in builders:
        raise ArtifactError(f"Architecture {name!r} is unknown: use one of {', '.join(sorted(builders))}.")
    try:
        return builders[name](**arguments)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, ConfigError) as error:
        raise ArtifactError(
            f"Architecture {name!r} does not take these arguments ({error}): check its description."
        ) from error


@naming
def load_artifact(
    path: Path | str,
    *,
    kind: Kind | None = None,
    device: torch.device | str = "cpu",
    allow_incomplete: bool = False,
) -> Artifact:
    """Load an artifact: check it, rebuild its network, and freeze it.

    Args:
        path: Folder of the artifact.
        kind: Refuse any other kind.
        device: Where to put the weights; ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        allow_incomplete: Also load an artifact whose training has not finished.

    Raises:
        ArtifactError: It is missing, damaged, unfinished, or of another kind.
        DeviceError: The device is unknown or not there.

    Example:
        >>> import difftumor as dt
        >>> artifact = dt.load_artifact("checkpoints/segmentation_liver_unet_mixed_fold0", kind="segmenter")
        >>> artifact.config.organ
        'liver'
    """
    folder = Path(path)
    if isinstance(device, str):
        device = pick_device(device)
    config = read_config(folder)
    if kind is not None and config.kind != kind:
        raise ArtifactError(
            f"{folder} is an artifact of kind {config.kind!r}, not {kind!r}: "
            f"give one made by python -m {STAGE_OF_KIND[kind]}."
        )
    if not config.complete and not allow_incomplete:
        raise ArtifactError(
            f"{folder} comes from a training that has not finished: let python -m {STAGE_OF_KIND[config.kind]} finish, "
            "or allow incomplete artifacts (allow_incomplete=true)."
        )
    weights = folder / WEIGHTS_FILE
    if not weights.is_file() or sha256_of(weights) != config.weights_sha256:
        raise ArtifactError(f"{weights} is missing or damaged (its SHA-256 differs): copy or train the artifact again.")
    if missing := [name for name in PREPROCESSING if name not in config.preprocessing]:
        raise ArtifactError(f"{folder / CONFIG_FILE} states no {missing[0]}: make the artifact again.")
    import torch

    _check_sizes(config.architecture, weights)
    # The random first weights are replaced at once; drawing them must not change the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        network = build_network(config.architecture)
    _load_weights(network, weights)
    return Artifact(path=folder, config=config, network=network.to(device).eval().requires_grad_(False))


def save_artifact(
    path: Path | str,
    *,
    kind: Kind,
    architecture: Mapping[str, Any],
    network: nn.Module,
    preprocessing: Mapping[str, Any],
    organ: str | None = None,
    parents: Mapping[str, Parent] | None = None,
    settings: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    real_tumors: Mapping[str, Any] | None = None,
    complete: bool = True,
) -> Path:
    """Write an artifact; an older artifact at ``path`` is replaced in one step, nothing half-written stays.

    Args:
        path: Folder to make.
        kind: What the network is for.
        architecture: ``{"name": ..., **constructor arguments}`` from which ``network`` was built.
        network: Its ``state_dict`` is saved.
        preprocessing: ``spacing_mm``, ``window_hu``, ``crop``.
        organ: Organ it was trained on.
        parents: Artifacts it needs, by role, as they were when they were loaded.
        settings: What the network is used with.
        training: Provenance, JSON-able.
        metrics: Measurements, JSON-able.
        real_tumors: How the real tumors look that the model has learned, from ``AppearanceRanges.to_dict``.
        complete: False while training goes on.

    Returns:
        The folder.

    Raises:
        ConfigError: ``path`` holds something that is not an artifact, or cannot be written to.
    """
    from safetensors.torch import save

    folder = Path(path)
    ARTIFACT_FOLDER.check(folder)
    references = {
        role: ParentReference(Path(os.path.relpath(parent.path, folder)).as_posix(), parent.identity)
        for role, parent in (parents or {}).items()
    }
    with folder_written_whole(folder) as staging:
        weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in own_weights(network).items()}
        # Not with save_file, whose files nobody else may read.
        (staging / WEIGHTS_FILE).write_bytes(save(weights))
        config = ArtifactConfig(
            kind=kind,
            architecture=dict(architecture),
            preprocessing=dict(preprocessing),
            weights_sha256=sha256_of(staging / WEIGHTS_FILE),
            organ=organ,
            parents=references,
            settings=dict(settings or {}),
            training=dict(training or {}),
            metrics=dict(metrics or {}),
            real_tumors=dict(real_tumors or {}),
            complete=complete,
        )
        # Parsed back before anything is replaced, so that what is written is what can be read.
        ArtifactConfig.from_json(config.to_json(), folder / CONFIG_FILE)
        (staging / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    return folder


def own_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the state of a network, each tensor under the first of its names.

    A network that lists a module under several names, as nnU-Net's residual encoder U-Net does, has its weights up to
    four times in ``state_dict()``.
    """
    return {name: tensor for name, (first, tensor) in _named(network).items() if name == first}


def _named(network: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Return the first name of each entry of a network's state, and its tensor."""
    first: dict[int, str] = {}
    # With `keep_vars`, two names of a tensor give the same object.
    state = network.state_dict(keep_vars=True)
    return {name: (first.setdefault(id(tensor), name), tensor) for name, tensor in state.items()}


def _check_sizes(architecture: Mapping[str, Any], file: Path) -> None:
    """Refuse an architecture of other sizes than the weights have, before memory is taken for it."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as weights:
            names = weights.keys()
            shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{file} is damaged ({error}): copy or train the artifact again.") from error
    most = max((size for shape in shapes.values() for size in shape), default=0)
    if (stated := max(_whole_numbers(architecture), default=0)) > max(most, _SMALL_NUMBER):
        raise ArtifactError(
            f"{file} does not fit the architecture in {CONFIG_FILE} (which states {stated}, and no side of its "
            f"tensors is longer than {most}): make it again."
        )
    try:
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in own_weights(build_network(architecture)).items()}
    except ArtifactError as error:
        if "meta tensors" in str(error):  # Swin UNETR, of three fixed sizes, looks at values while it is built
            return
        raise
    if wrong := [name for name, shape in wanted.items() if shapes.get(name) != shape]:
        found = shapes.get(wrong[0], "nothing")
        raise ArtifactError(
            f"{file} does not fit the architecture in {CONFIG_FILE} ({wrong[0]} is {found}, not {wanted[wrong[0]]}): "
            "make it again."
        )


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _whole_numbers(inner)
    elif isinstance(value, int):
        yield value


def _load_weights(network: nn.Module, file: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(file)
    others = {name: first for name, (first, _) in _named(network).items() if name not in stored and first in stored}
    try:
        network.load_state_dict({**stored, **{name: stored[first] for name, first in others.items()}}, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise ArtifactError(
            f"{file} does not fit the architecture in {CONFIG_FILE} ({first}): make it again."
        ) from error


def pick_device(name: str) -> torch.device:
    """Return the device called "auto" (CUDA if there is one, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        DeviceError: It is unknown or not there.
    """
    if not re.fullmatch(r"[a-z]+(:\d+)?", name):
        raise DeviceError(f"Device {name!r} is unknown: use auto, cpu, cuda or cuda:N.")
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"Device {name!r} is unknown: use auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"Device {name!r} is not supported: use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"There is no device {name!r} on this machine: use cpu or auto.")
    return device


def describe_device(device: torch.device) -> str:
    """Return the name of a GPU, or the kind of machine and its threads, for reports of measured times."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.system()} {platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"
