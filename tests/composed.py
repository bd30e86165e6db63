"""Rewrite tests/data/composed_configs.yaml after a config has changed: ``python -m tests.composed``."""

from typing import Any

import yaml

from stages.config.comparing import flatten
from stages.config.compose import CONFIGS, compose_config
from stages.config.reading import to_plain
from tests.conftest import REPOSITORY

FILE = REPOSITORY / "tests" / "data" / "composed_configs.yaml"


def main() -> None:
    """Compose all choices that the file has, and those of groups that it lacks."""
    text = FILE.read_text()
    stages = {stage: _of_stage(stage, list(choices)) for stage, choices in yaml.safe_load(text).items()}
    dumped = yaml.safe_dump(stages, sort_keys=False, default_flow_style=None, width=130, allow_unicode=True)
    FILE.write_text(f"{text.splitlines()[0]}\n{dumped}")


def _of_stage(stage: str, choices: list[str]) -> dict[str, Any]:
    usual = to_plain(compose_config(stage, []))
    flat = flatten(usual)
    own = [file for folder in sorted((CONFIGS / stage).iterdir()) for file in sorted(folder.glob("*.yaml"))]
    composed: dict[str, Any] = {"": usual}
    for choice in dict.fromkeys([*choices, *(f"{file.parent.name}={file.stem}" for file in own)]):
        if choice:
            values = flatten(to_plain(compose_config(stage, [choice])))
            changed = {name: value for name, value in values.items() if name not in flat or flat[name] != value}
            composed[choice] = {**changed, **{f"~{name}": None for name in flat if name not in values}}
    return composed


if __name__ == "__main__":
    main()
