import re

import yaml

import ltcam
from ltcam.files import ROOT

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_citation_has_what_its_format_requires():
    """Version 1.2.0 of the format: these keys of a file, and of each reference."""
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    assert all(CITATION[key] for key in ("message", "title", "authors"))
    assert all(reference[key] for reference in CITATION["references"] for key in ("type", "title", "authors"))


def test_citation_is_of_this_version_and_license():
    assert CITATION["version"] == ltcam.__version__ and CITATION["authors"] == [{"name": "The ltcam authors"}]
    assert (ROOT / "LICENSE").read_text().startswith(f"{CITATION['license']} License\n")


def test_citation_is_of_the_paper_that_the_readme_is_about():
    (paper,) = CITATION["references"]
    title, url = re.search(r"\*(Rethinking[^*]+)\*.*?\]\((https:[^)]+)\)", (ROOT / "README.md").read_text(), re.DOTALL).groups()
    assert (paper["title"], paper["url"]) == (" ".join(title.split()), url)
    assert paper["identifiers"][0]["value"] == f"arXiv:{url.split('/')[-1]}"
    assert [author["family-names"] for author in paper["authors"]] == ["Dong", "Jiang", "Huang", "Liao", "Liu", "Ye", "Liu"]
