"""The book: `make book`. Its source is the whole checkout, so links to pages, tables and figures stay as they are."""

import re
import shutil
import subprocess
from pathlib import Path

from docutils import nodes

from docs import explorer

project, author, copyright = "ltcam", "The ltcam authors", "the ltcam authors, MIT license"
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "data/README.md", "notebooks/*.ipynb", "results/*/notebooks/*.ipynb"]
exclude_patterns = [".*", "book", "build", "mutants", "results/demo", "**/*.failed.ipynb"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx-mathjax-offline", "sphinxcontrib.bibtex"]
bibtex_bibfiles, bibtex_default_style = ["references.bib"], "plain"
numfig = True
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True
autodoc_member_order = "groupwise"
html_theme, html_title = "furo", "ltcam"
html_static_path = html_css_files = ["book.css"]
html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses from file://

SETS = {"voc2012": "/results/*/notebooks/*.voc2012", "ksdd": "/results/*/notebooks/*.ksdd",
        "magnetic_tile": "/results/*/notebooks/*.magnetic_tile", "demo": "/notebooks/*"}  # fmt: skip
CHROMIUM = shutil.which("chromium")  # prints the article
PRINT = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", "--virtual-time-budget=10000"]
PAGES = {
    "What came of it": ["docs/article", "docs/results", "docs/tables", "docs/replication"],
    "Notebooks and figures": [*(f"docs/{name}" for name in SETS), "docs/explore"],
    "Reference": ["docs/api", "docs/settings", "docs/models", "docs/wrong_maps", "docs/running", "docs/speed", "data/README",
                  "CONTRIBUTING", "CHANGELOG"],
}  # fmt: skip


def setup(app):
    app.connect("source-read", extended)
    app.connect("autodoc-process-docstring", plain)
    app.connect("doctree-resolved", hinted)
    app.connect("build-finished", completed)


def extended(app, page, source):
    """A page with what a reader of the repository does not need: the tables of contents, and the script of the sliders."""
    name = page.removeprefix("docs/")
    if page == "README":
        listed = [toctree([f"/{own}" for own in pages], f":caption: {caption}\n") for caption, pages in PAGES.items()]
        source[0] += "".join(listed)
    elif name in SETS:
        source[0] += toctree([SETS[name]])
    elif name == "explore":
        source[0] += f"\n`````{{raw}} html\n{explorer.page()}\n`````\n"
    elif name == "article":
        source[0] += "\n\n## References\n\n```{bibliography}\n```\n"
        source[0] += '\n<a href="article.pdf">This page as a PDF</a>\n' if CHROMIUM else ""


def toctree(entries, options=""):
    lines = "\n".join(entries)
    return f"\n\n```{{toctree}}\n:hidden:\n:glob:\n{options}\n{lines}\n```\n"


def plain(app, what, name, found, options, lines):
    """Docstrings are plain text: a list of parameters keeps its lines, and only backticks are marks."""
    parts = "\n".join(lines).split("`")
    text = "``".join(part if number % 2 else re.sub(r"([\\*_|])", r"\\\1", part) for number, part in enumerate(parts))
    blocks = [block if "  " not in block else "| " + block.replace("\n", "\n| ") for block in text.split("\n\n")]
    lines[:] = "\n\n".join(blocks).split("\n")


def hinted(app, doctree, page):
    """A reference within a page has a hint of what it leads to: a caption, a work, or the words before an equation.

    Extensions with previews load their scripts from another host.
    """
    hints, before = {}, ""
    for node in doctree.findall(nodes.Element):
        before = node.astext() if isinstance(node, nodes.paragraph) else before
        for name in node.get("ids", ()):
            words = node.next_node(nodes.caption) or node.next_node(nodes.title) or node
            hints[name] = before.split(". ")[-1] if isinstance(node, nodes.math_block) else words.astext()
    for link in doctree.findall(nodes.reference):
        if hint := hints.get(link.get("refid")):
            link["reftitle"] = " ".join(hint.split())


def completed(app, error):
    """The tables that executed notebooks link to, and a first page under the name that browsers look for."""
    for path in Path(app.srcdir).glob("results/[!d]*/*/*.csv*"):
        target = Path(app.outdir, path.relative_to(app.srcdir))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if not error:
        shutil.copyfile(Path(app.outdir, "README.html"), Path(app.outdir, "index.html"))
    if not error and CHROMIUM:
        article = Path(app.outdir, "docs", "article.html")
        command = [CHROMIUM, *PRINT, f"--print-to-pdf={article.with_suffix('.pdf')}", article.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
