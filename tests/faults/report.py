"""docs/reliability.md from what the fault tests recorded: `make faults`, or python -m tests.faults.report LOG."""

import json
import re
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
COLUMNS = ("fault", "tried", "lost", "crashed", "message")
HEAD = """# What happens when something goes wrong

Each row is a fault that the tests provoke, or an unusual input.

- *Tried*: how often we tried it.
- *Lost*: how often a file then differed from what an undisturbed run leaves, byte for byte. A stopped run is first run again.
- *Crashed*: how often a traceback came in place of a message.
- *Message*: what ltcam said, shortened. It is empty where there was nothing to say.

`make faults` writes this page. It runs `tests/faults` and kills each command ten times, at a random moment or right before a
random change of a file. CI kills each command once, and checks that each fault it provokes has its row here.
"""


def rows(page):
    """The rows of a page, as dictionaries of text."""
    cells = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in page.splitlines() if line.startswith("| ")]
    return [dict(zip(COLUMNS, row, strict=False)) for row in cells[2:]]


def shortened(message):
    """Without the folders of this machine, and no longer than two lines."""
    text = re.sub(r"(?<![\w.])/\S*/(?=[^\s/])", "…/", " ".join(message.split())).replace("|", r"\|")
    return text if len(text) <= 240 else text[:239] + "…"


def page(log):
    """The page of a log, a JSON object a line."""
    seen = [json.loads(line) for line in log.splitlines()]
    lines = [[row["name"], *(str(row[key]) for key in COLUMNS[1:4]), shortened(row["message"])] for row in seen]
    table = [COLUMNS, ("---", "---:", "---:", "---:", "---"), *lines]
    return HEAD + "\n" + "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(Path(sys.argv[1]).read_text()))
