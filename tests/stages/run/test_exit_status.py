"""What a stage says when something goes wrong: one sentence, and a traceback on demand."""

import pytest

from difftumor.errors import TrainingError, concerning
from stages.exit_status import reported


def failing(error):
    def work():
        with concerning("/there/ct.nii.gz"):
            raise error

    return work


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TrainingError("no."), "Error: no.\n"),
        (
            KeyError(1),
            "Error: /there/ct.nii.gz: KeyError: 1. This is unexpected; HYDRA_FULL_ERROR=1 shows where it happened.\n",
        ),
    ],
    ids=["foreseen", "unforeseen"],
)
def test_every_error_is_one_sentence_and_shows_where_on_demand(monkeypatch, capsys, error, said):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert reported(failing(error)) == 1
    assert capsys.readouterr().err == said
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert reported(failing(error)) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith(said)


def test_a_lack_of_memory_says_what_to_lower(capsys):
    assert reported(failing(MemoryError())) == 1
    assert "/there/ct.nii.gz: there is not enough memory (" in (text := capsys.readouterr().err)
    assert "data.batch_size" in text
