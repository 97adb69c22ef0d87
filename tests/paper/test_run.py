from ltcam.experiment.configs import Protocol
from ltcam.experiment.study import Study
from ltcam.paper.run import Run


def test_all_counts_of_a_run_are_of_its_own_protocol(monkeypatch, tmp_path):
    """A notebook that leaves the protocol out must not measure again what another cell measured with the run's batch size."""
    seen = []
    monkeypatch.setattr(Study, "__init__", lambda self, profile, data: None)
    monkeypatch.setattr(Study, "counts", lambda self, configs, protocol, role, below: seen.append((protocol, role, below)))
    run = Run("demo", "demo", batch_size=3)
    run.counts([])
    run.counts([], Protocol(5), "train", "x")
    assert seen == [(Protocol(3), "test", ""), (Protocol(5), "train", "x")]
