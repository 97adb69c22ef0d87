import re

from ltcam import paths, training


def test_the_readmes_python_runs(output):
    """On a tiny model where `make reproduce` leaves the demo's."""
    recipe = training.Recipe(data="demo", weights=None, width=16, hidden=16, frozen=5, epochs=1)
    training.train(recipe, paths.results("demo", "demo"))
    (block,) = re.findall(r"```python\n(.*?)```", (paths.ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["heatmaps"].shape == names["plain"].shape == (2, 160, 160)
