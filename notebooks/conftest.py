"""`pytest --nbval notebooks` says in its last lines how many cells it compared."""

import matplotlib.font_manager  # noqa: F401 - looks for a place for its cache once, so that no kernel speaks of it on stderr
import pytest

from ltcam.paper import kernels


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    cells = [item for item in terminalreporter.config.stash[ITEMS] if hasattr(item, "cell")]
    compared = [item for item in cells if item.options["check"] and item.cell.execution_count and item.cell.outputs]
    ran = sum(len(terminalreporter.getreports(outcome)) for outcome in ("passed", "failed"))
    terminalreporter.write_line(f"nbval: {ran} of {len(cells)} cells ran, {len(compared)} have outputs that are compared")


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[ITEMS] = session.items


ITEMS = pytest.StashKey[list[pytest.Item]]()
kernels.fork()
