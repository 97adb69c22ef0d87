"""The committed measurements of every device side by side: `python -m benchmarks.beside`."""

import pandas as pd

from benchmarks.figure import RESULTS

KEYS = {"peers": (["task", "library"], "over floor"), "scale": (["what", "of"], "median"), "floor": (["work"], "GFLOP/s")}


def table() -> pd.DataFrame:
    """A row a measurement, a column a device ("cpu", "cuda"); the index is (benchmark, what is measured, unit)."""
    columns = {}
    for name, (keys, value) in KEYS.items():
        for path in RESULTS.glob(f"{name}_*.csv"):
            device = path.stem.removeprefix(f"{name}_")
            if device in ("cpu", "cuda"):
                rows = pd.read_csv(path).set_index(keys)[value]
                labels = [(name, " ".join(key) if isinstance(key, tuple) else key, value) for key in rows.index]
                columns.setdefault(device, []).append(rows.set_axis(pd.MultiIndex.from_tuples(labels)))
    return pd.DataFrame({device: pd.concat(parts) for device, parts in sorted(columns.items())})


if __name__ == "__main__":
    print(table().round(3).to_string())
