"""The report is one page that needs nothing else and shows nothing as markup that was meant as text."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from difftumor.reporting.plots import curves, to_png
from difftumor.reporting.report import Report
from difftumor.reporting.tables import Table, format_cell

NASTY = "<script>alert('x')</script> & \"quotes\""
VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Collects tags, attributes and text, and complains about tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def checked(report: Report) -> Checker:
    checker = Checker()
    checker.feed(report.html())
    checker.close()
    assert not checker.open
    return checker


def full_report(text: str) -> Report:
    report = Report(text, subtitle=text)
    report.heading(text)
    report.heading(text, level=3)
    report.paragraph(text)
    report.code(text)
    report.key_values({text: text, "n": 3})
    report.table(Table([text, "value"], [[text, 1.5]], title=text))
    report.figure(curves({"a": ([0, 1], [1, 2])}), caption=text)
    return report


def test_everything_is_escaped_and_the_tags_match():
    page = checked(full_report(NASTY))
    assert "script" not in {tag for tag, _ in page.tags}
    # Page title, h1, subtitle, h2, h3, p, code, dt, dd, caption, th, td, figcaption.
    assert page.text.count(NASTY) == 13
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["alt"] == NASTY


def test_nothing_is_requested_from_outside():
    page = checked(full_report("text"))
    for _, attributes in page.tags:
        for name in ("src", "href"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"url\(|@import|https?:", full_report("text").html())


def test_pictures_are_embedded_as_they_are():
    png = to_png(curves({"a": ([0, 1], [1, 2])}), dpi=96)
    report = Report("r")
    report.figure(png, caption="c", dpi=96)
    (image,) = [attributes for tag, attributes in checked(report).tags if tag == "img"]
    assert base64.b64decode(image["src"].split(",")[1]) == png
    assert "max-width: 672px" in image["style"]  # 7 inches at 96 pixels
    with pytest.raises(ValueError, match="not a PNG"):
        report.figure(b"GIF89a", caption="c")


def test_contents_list_the_sections_of_long_reports():
    report = Report("r")
    for name in ("one", "two"):
        report.heading(name)
    assert "<nav" not in report.html()
    report.heading("three")
    page = checked(report)
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    identifiers = ["#" + str(attributes["id"]) for tag, attributes in page.tags if tag == "h2"]
    assert links == identifiers
    assert len(set(links)) == 3


def test_columns_of_numbers_are_aligned_right():
    report = Report("r")
    report.table(Table(["case", "dsc", "mixed"], [["a", 0.5, 1], ["b", None, "x"]]))
    cells = [attributes.get("class") for tag, attributes in checked(report).tags if tag == "td"]
    assert cells == [None, "number", None] * 2
    with pytest.raises(ValueError, match="1 cells"):
        report.table(Table(["a", "b"], [["c"]]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (np.float32("nan"), "–"),
        (0.123456, "0.1235"),
        (np.float32(0.5), "0.5"),
        (-2, "−2"),
        (np.int64(7), "7"),
        ("a-b", "a-b"),
        (True, "True"),
    ],
)
def test_cells(value, text):
    assert format_cell(value) == text


def test_write_makes_the_folder_and_one_file(tmp_path):
    path = full_report("text").write(tmp_path / "a" / "report.html")
    assert path.read_text(encoding="utf-8") == full_report("text").html()
    assert list(path.parent.iterdir()) == [path]
