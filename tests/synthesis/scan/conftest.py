"""What the tests of whole scans share."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def no_picture(monkeypatch):
    """Skip the preview, which takes longer than everything else."""
    monkeypatch.setattr("difftumor.synthesis.scan.files.plot_preview", lambda *_, **__: Figure(figsize=(1, 1)))
