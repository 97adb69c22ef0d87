"""An executed notebook as HTML: outputs without anything that runs, Markdown escaped, equations as MathML.

nbconvert renders it. Tools that build on nbconvert cost more than they give here. jupyter-book 2 and quarto-cli fetch parts
from hosts outside the package index. mkdocs-jupyter 0.26 works, but it adds 0.7 MB of styles and addresses of a CDN to each
page, and the end of life of its theme is announced.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors.sanitize import SanitizeHTML
from pygments.formatters import HtmlFormatter

from ltcam.files import AnyPath

_CLEAN = SanitizeHTML(  # type: ignore[no-untyped-call] # HTML outputs may hold what pandas writes, and nothing that runs
    tags=["a", "b", "br", "caption", "div", "em", "h3", "h4", "i", "p", "span", "strong", "style", "table", "tbody", "td", "th",
          "thead", "tr"],
    attributes={"*": ["class", "colspan", "id", "rowspan", "style"]},
    sanitized_output_types={"text/html"},
    safe_output_keys={"text/plain", "text/markdown", "image/png", "image/jpeg"},
)  # fmt: skip


logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbconvert warns of every output it cleans


def notebook(path: AnyPath) -> dict[str, Any]:
    """Name, data set, title, page and body (HTML) of an executed notebook."""
    path = Path(path)
    read = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    heading = title = path.stem
    for cell in read.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            heading = cell.source.split("\n")[0].lstrip("# ")
            title = heading if title == path.stem else title
        for output in _CLEAN.sanitize_code_outputs(cell.get("outputs", [])):  # type: ignore[no-untyped-call]
            if "data" in output:
                output.metadata["alt"] = heading  # of the picture, if it is one
    exporter = HTMLExporter(template_name="basic", filters={"markdown2html": _markdown})  # type: ignore[no-untyped-call]
    _, _, data = path.stem.partition(".")
    # Outputs are cleaned and Markdown is escaped above.
    body = Markup(exporter.from_notebook_node(read)[0].replace('href="../', 'href="results/'))  # nosec B704 # beside notebooks/
    return {"name": path.name, "data": data, "title": title, "page": f"{path.stem}.html", "body": body}


class _Renderer(IPythonRenderer):
    """Equations as MathML, which browsers draw by themselves."""

    def inline_math(self, body: str) -> str:
        return convert(body)

    def block_math(self, body: str) -> str:
        return f'<span class="equation">{convert(body, display="block")}</span>'


def _markdown(source: str) -> str:
    """Markdown as HTML. HTML inside it is shown as text."""
    renderer = _Renderer(escape=True, allow_harmful_protocols=False, exclude_anchor_links=True)
    return str(MarkdownWithMath(renderer=renderer).render(source))


def highlighting() -> str:
    """The styles of code in a page, light and dark."""
    light, dark = (HtmlFormatter(style=s).get_style_defs(".highlight") for s in ("default", "github-dark"))
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n.highlight {{ background: none }}\n"
