import pytest

from ltcam.experiment import scores
from ltcam.paper import breakdown


@pytest.fixture
def few(monkeypatch):
    """Few draws, for what does not depend on how many there are."""
    for function in (scores.draws, breakdown.correlated):
        monkeypatch.setattr(function, "__defaults__", (20,))
