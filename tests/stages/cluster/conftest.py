"""A stand-in for SLURM's programs, which records what it is asked."""

import shutil
from pathlib import Path

import pytest

SBATCH = """#!/bin/bash
number=$(($(cat {folder}/number 2>/dev/null || echo 100) + 1))
if [ -e {folder}/refusal ] && [ $number -gt $(cat {folder}/accepts 2>/dev/null || echo 0) ]; then
  cat {folder}/refusal >&2; exit 1
fi
echo $number > {folder}/number
cp "$1" {folder}/script.$number
env > {folder}/environment.$number
echo "Submitted batch job $number"
"""


class FakeSlurm:
    """``sbatch`` numbers jobs from 101; ``squeue`` prints ``queue``; ``scancel`` notes what it is given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        self.program("sbatch", SBATCH.format(folder=folder))
        self.program("srun", "#!/bin/sh\n")
        self.program("squeue", f"#!/bin/sh\ncat {folder}/queue 2>/dev/null\n")
        self.program("sinfo", "#!/bin/sh\necho gpu; echo long; echo gpu\n")
        self.program("scancel", f'#!/bin/sh\necho "$@" >> {folder}/canceled\n')
        self.program("sacct", f"#!/bin/sh\ncat {folder}/accounting 2>/dev/null\n")

    def program(self, name: str, text: str) -> None:
        file = self.folder / "bin" / name
        file.write_text(text)
        file.chmod(0o755)

    def refuse(self, text: str, *, after: int = 0) -> None:
        (self.folder / "refusal").write_text(text)
        (self.folder / "accepts").write_text(str(100 + after))

    def options(self, job: int) -> dict[str, str]:
        lines = (self.folder / f"script.{job}").read_text().splitlines()
        flags = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH --")]
        return {name: value.strip("'") for name, _, value in (flag.partition("=") for flag in flags)}

    def script(self, job: int) -> str:
        return (self.folder / f"script.{job}").read_text()

    @property
    def canceled(self) -> list[str]:
        file = self.folder / "canceled"
        return file.read_text().split() if file.exists() else []

    def queue(self, *rows: tuple[str, ...]) -> None:
        (self.folder / "queue").write_text("".join("".join(f"{each:<256}" for each in row) + "\n" for row in rows))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    folder = tmp_path / "fake"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}/bin")
    made = FakeSlurm(folder)
    for program in ("bash", "sh", "cat", "cp", "env", "git"):  # a true SLURM may be installed beside them
        if found := shutil.which(program, path="/usr/bin:/bin"):
            (folder / "bin" / program).symlink_to(found)
    return made
