"""The report of a scale is whole, offline and safe."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from editscale.workflow import cli, parameters, report
from editscale.workflow.provenance import finish, made_with

HOSTILE = "<script>alert(1)</script> & <img src='https://example.org/x.png' onerror='alert(1)'>"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
BAR = "\rkeys:   0%|          | 0/2\rkeys: 100%|██████████| 2/2 [00:01<00:00, 2it/s]\n"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def write_executed(path, *cells, out=""):
    """An executed notebook as papermill leaves it."""
    papermill = {"duration": 61.2, "parameters": {"out": out}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells), metadata={"kernelspec": KERNEL, "papermill": papermill}), path)
    return path


def code(source, *outputs, status="completed"):
    return new_code_cell(source, outputs=list(outputs), metadata={"papermill": {"status": status}})


def stream(text, name="stdout"):
    return new_output("stream", text=text, name=name)


def shown(**data):
    return new_output("display_data", {name.replace("_", "/"): value for name, value in data.items()})


def write_study():
    """A study of one scale: notebook 1, two runs of notebook 2 of which one failed, notebook 10, one figure."""
    notebooks = Path("runs/test/notebooks")
    text = "# 1 · Keys\n\nWhat are *keys*?\n\n## Set-up\n\nNext: [two](02_edits.ipynb#edit), [ten](10_end.ipynb)."
    link = "[paper](https://arxiv.org/abs/2401.07453), [gone](07_gone.ipynb), [file](../README.md)"
    table = shown(text_html=pd.DataFrame({"fact": [HOSTILE]}).to_html(), text_plain="plain table")
    cells = [
        new_markdown_cell(text),
        new_markdown_cell(link),
        code("x = 1", stream(BAR, "stderr"), stream(HOSTILE), table),
    ]
    write_executed(notebooks / "01_keys.ipynb", *cells, out="runs/test/keys")
    text = new_markdown_cell("# 2 · Edits\n\nDo they take? See [one](01_keys.ipynb).")
    write_executed(notebooks / "02_edits/rome-order-0.ipynb", text, code("y", shown(image_png=PIXEL)))
    error = new_output("error", ename="ValueError", evalue=f"order 12 {HOSTILE}", traceback=["order 12"])
    write_executed(notebooks / "02_edits/memit-order-0.ipynb", new_markdown_cell("# 2 · Edits"), code("z", error))
    write_executed(notebooks / "10_end.ipynb", new_markdown_cell("# 10 · End"), code("a"), code("b", status="pending"))
    write_executed(notebooks / ".ipynb_checkpoints/01_keys-checkpoint.ipynb")
    Path("runs/test/keys").mkdir()
    Path("runs/test/keys/keys.csv").write_text("a\n1\n")
    finish("runs/test/keys", ["runs/test/keys/keys.csv"], made_with({"device": "cpu", "name": HOSTILE}, "0" * 64))
    Path("runs/test/figures").mkdir(parents=True)
    Path("runs/test/figures/fig1.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    Path("runs/test/figures/fig1.csv").write_text("a\n1\n")
    Path("runs/test/figures/fig1.json").write_text(json.dumps({"caption": f"Keys: {HOSTILE}"}))


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_study()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """The index page of the study's report, for tests that change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("study"))
        write_study()
        return report.write_report("test").resolve()


@pytest.fixture(scope="module")
def made(index):
    return pages(index)


def pages(index):
    """Every page of a report, parsed, by its path in it."""
    folder = index.parent
    found = sorted(folder.rglob("*.html"))
    return {path.relative_to(folder).as_posix(): BeautifulSoup(path.read_text(), "html.parser") for path in found}


# --------------------------------------------------------------------------------------------------- report


def test_report_has_an_index_and_one_page_for_each_executed_notebook_in_the_order_of_their_numbers(made):
    listed = [link["href"] for link in made["index.html"].select("#notebooks a")]
    assert listed == ["01_keys.html", "02_edits/memit-order-0.html", "02_edits/rome-order-0.html", "10_end.html"]
    assert set(made) == {"index.html", *listed}


def test_titles_come_from_the_notebooks(made):
    titles = [title.get_text() for title in made["index.html"].select("#notebooks h3")]
    assert titles == ["1 · Keys", "2 · Edits", "10 · End"]
    assert made["02_edits/rome-order-0.html"].title.get_text() == "2 · Edits, rome-order-0 · test"


def test_every_relative_link_leads_to_a_file_and_an_anchor_of_the_report(index, made):
    checked = 0
    for name, page in made.items():
        for href in [tag[kind] for kind in ("href", "src") for tag in page.find_all(attrs={kind: True})]:
            parts = urlsplit(href)
            if parts.scheme in ("data", "https"):
                continue
            target = (index.parent / name).parent / unquote(parts.path) if parts.path else index.parent / name
            assert target.is_file() and target.resolve().is_relative_to(index.parent.resolve()), f"{name}: {href}"
            if parts.fragment:
                other = made[target.resolve().relative_to(index.parent.resolve()).as_posix()]
                assert other.find(id=unquote(parts.fragment)), f"{name}: {href}"
            checked += 1
    assert checked > 30


def test_links_between_notebooks_lead_to_their_pages_and_dead_ones_are_text(made):
    links = {link.get_text(): link["href"] for link in made["01_keys.html"].select("article a")}
    assert links == {
        "two": "index.html#02_edits",
        "ten": "10_end.html",
        "paper": "https://arxiv.org/abs/2401.07453",
    }
    assert "gone" in made["01_keys.html"].select_one("article").get_text()
    assert made["02_edits/rome-order-0.html"].select_one("article a")["href"] == "../01_keys.html"


def test_pages_run_nothing_and_fetch_nothing(made):
    for name, page in made.items():
        assert page.find_all(["script", "iframe", "object", "embed"]) == [], name
        assert [link["href"] for link in page.find_all("link")] == ["data:,"], name
        sources = [tag["src"] for tag in page.find_all(src=True)]
        assert all(re.match(r"data:image/png;base64,|figures/", source) for source in sources), name
        assert not re.search(r"url\(|@import", page.style.get_text()), name
        assert not [attribute for tag in page.find_all(True) for attribute in tag.attrs if attribute.startswith("on")]
        policy = page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
        assert policy.startswith("default-src 'none'") and "script-src" not in policy, name
    assert "data:image/png;base64" in str(made["02_edits/rome-order-0.html"])


def test_text_from_data_is_shown_as_it_is_and_never_as_markup(made):
    assert f"Keys: {HOSTILE}" in made["index.html"].select_one("figcaption").get_text()
    assert HOSTILE in made["index.html"].select_one("#provenance").get_text()
    assert f"order 12 {HOSTILE}" in made["index.html"].select_one(".failure").get_text()
    assert HOSTILE in made["01_keys.html"].select_one(".output_stdout").get_text()
    assert HOSTILE[:30] in made["01_keys.html"].select_one("td").get_text()


def test_markup_in_outputs_and_markdown_keeps_tables_and_loses_what_acts(study):
    page = Path("runs/test/notebooks/11_html.ipynb")
    html = f"<table><tr><td>{HOSTILE}</td></tr></table><a href='javascript:alert(1)'>go</a><form><input></form>"
    write_executed(page, new_markdown_cell(f"# 11\n\n{HOSTILE}"), code("x", shown(text_html=html)))
    article = pages(report.write_report("test"))["11_html.html"].select_one("article")
    assert article.select("td") and not article.find_all(["script", "form", "input"])
    assert not article.find_all(href=True) and not article.find_all(src=True) and "go" in article.get_text()
    assert "alert" not in article.select_one("td").get_text()


@pytest.mark.parametrize(
    "html",
    [
        "<a href='javascript:alert(1)'>x</a>",
        "<a href=' JaVaScRiPt:alert(1)'>x</a>",
        "<a href='java&#10;script:alert(1)'>x</a>",
        "<a href='data:text/html,<b>x</b>'>x</a>",
        "<a href='&#100;ata:text/html,x'>x</a>",
        "<a href='//example.org/x'>x</a>",
        "<img src='https://example.org/x.png'>",
        "<img src='data:text/html;base64,eA=='>",
        "<img srcset='https://example.org/x.png'>",
        "<iframe src='https://example.org'></iframe>",
        "<object data='https://example.org'></object><embed src='https://example.org'>",
        "<svg><a href='https://example.org'><script>alert(1)</script></a></svg>",
        "<meta http-equiv='refresh' content='0;url=https://example.org'><base href='https://example.org'>",
        "<link rel='stylesheet' href='https://example.org/x.css'><style>@import 'https://example.org'</style>",
        "<p style='background: url(https://example.org)' onclick='alert(1)'>x</p>",
        "<form action='https://example.org'><button formaction='https://example.org'>x</button></form>",
        "<scr<script>ipt>alert(1)</scr</script>ipt>",
    ],
)
@pytest.mark.parametrize("place", ("output", "markdown", "markdown output", "isolated output"))
def test_hostile_markup_is_harmless_wherever_a_notebook_holds_it(tmp_path, monkeypatch, html, place):
    monkeypatch.chdir(tmp_path)
    cells = {
        "output": code("x", shown(text_html=html)),
        "markdown": new_markdown_cell(f"Text {html}"),
        "markdown output": code("x", shown(text_markdown=html)),
        "isolated output": code("x", shown(text_html=html)),
    }
    if place == "isolated output":
        cells[place].outputs[0].metadata = {"text/html": {"isolated": True}, "image/png": {"width": "1 onload=x"}}
    write_executed(Path("runs/test/notebooks/11_html.ipynb"), new_markdown_cell("# 11"), cells[place])
    article = pages(report.write_report("test"))["11_html.html"].select_one("article")
    active = "script style iframe object embed svg meta base link form input button".split()
    assert not article.find_all(active) and not article.find_all(src=True)
    assert all(tag["href"].startswith("https://") for tag in article.find_all(href=True))
    assert not [
        name for tag in article.find_all(True) for name in tag.attrs if name.startswith("on") or "style" in name
    ]


def test_links_and_pictures_of_markdown_are_no_way_out(study):
    text = "[x](javascript:alert(1)) ![y](https://example.org/y.png) [z](data:text/html,z) [w](../../../secret.html)"
    write_executed(Path("runs/test/notebooks/11_html.ipynb"), new_markdown_cell(f"# 11\n\n{text}"))
    article = pages(report.write_report("test"))["11_html.html"].select_one("article")
    assert not article.find_all(src=True)
    assert [tag["href"] for tag in article.find_all(href=True) if not tag["href"].startswith("#")] == []


def test_recorded_figures_that_a_notebook_embeds_come_with_its_page(study):
    Path("figures/smollm2").mkdir(parents=True)
    Path("figures/smollm2/fig1.png").write_bytes(base64.b64decode(PIXEL))
    text = "# 11\n\n![Recorded figure 1](../figures/smollm2/fig1.png)"
    write_executed(Path("runs/test/notebooks/11_html.ipynb"), new_markdown_cell(text))
    image = pages(report.write_report("test"))["11_html.html"].select_one("article img")
    assert image["src"] == f"data:image/png;base64,{PIXEL}" and image["alt"] == "Recorded figure 1"


def test_progress_bars_are_shown_in_their_last_state(made):
    assert made["01_keys.html"].select_one(".output_stderr").get_text().strip() == BAR.split("\r")[-1].strip()


def test_failed_and_unfinished_notebooks_are_named_in_the_index_and_on_their_pages(made):
    named = {box.a["href"]: box.get_text() for box in made["index.html"].select(".failure")}
    assert set(named) == {"02_edits/memit-order-0.html", "10_end.html"}
    assert "ValueError: order 12" in named["02_edits/memit-order-0.html"]
    assert "1 of its 2 code cells" in named["10_end.html"]
    failed = made["02_edits/memit-order-0.html"]
    assert "order 12" in failed.select_one(".failure").get_text()
    assert "order 12" in failed.select_one(".output_error").get_text()
    assert not made["01_keys.html"].select(".failure")


def test_a_notebook_altered_since_it_was_executed_is_named(study):
    path = Path("runs/test/notebooks/01_keys.ipynb")
    nbformat.write(parameters.seal(parameters.read_notebook(path)), path)
    assert "altered" not in report.write_report("test").read_text()
    path.write_text(path.read_text().replace("x = 1", "x = 2"))
    named = pages(report.write_report("test"))
    assert "It was altered since it was executed" in named["index.html"].get_text()
    assert "It was altered since it was executed" in named["01_keys.html"].select_one(".failure").get_text()


def test_figures_are_copied_with_their_files(index, made):
    figure = made["index.html"].select_one("figure#fig1")
    assert figure.img["src"] == "figures/fig1.svg"
    assert [link.get_text() for link in figure.select("a")] == ["svg", "csv", "json"]
    assert (index.parent / "figures/fig1.csv").read_text() == "a\n1\n"


def test_provenance_names_parameters_versions_commit_and_hashes_and_what_changed_since(study):
    record = json.loads(Path("runs/test/keys/done.json").read_text())
    section = pages(report.write_report("test"))["index.html"].select_one("#provenance")
    text = section.get_text()
    for fact in ("keys", "device", record["packages"]["torch"], record["code_sha256"], *record["files"].values()):
        assert fact in text
    assert section.select_one("td a")["href"] == "01_keys.html"
    assert "1 as recorded" in text and not section.select(".failed")
    Path("runs/test/keys/keys.csv").write_text("a\n2\n")
    section = pages(report.write_report("test"))["index.html"].select_one("#provenance")
    assert "1 of 1 changed since" in section.get_text() and section.select(".failed")


def test_a_version_that_differs_between_runs_is_shown_with_its_runs():
    records = [{"run": run, "versions": {"torch": "2", "numpy": n}} for run, n in (("a", "1"), ("b", "2"))]
    assert report._versions(records) == [("torch", [("2", "")]), ("numpy", [("1", "a"), ("2", "b")])]


def test_a_new_report_leaves_no_page_of_a_notebook_that_is_gone(study):
    index = report.write_report("test")
    Path("runs/test/notebooks/10_end.ipynb").unlink()
    assert report.write_report("test") == index
    assert "10_end.html" not in pages(index) and "10_end" not in index.read_text()
    assert sorted(path.name for path in Path("runs/test").iterdir()) == ["figures", "html", "keys", "notebooks"]


def test_equal_inputs_give_equal_bytes(study):
    index = report.write_report("test")
    before = {path: path.read_bytes() for path in index.parent.rglob("*") if path.is_file()}
    report.write_report("test")
    assert {path: path.read_bytes() for path in index.parent.rglob("*") if path.is_file()} == before


def test_a_report_that_cannot_be_written_leaves_the_old_one(study, capsys):
    before = report.write_report("test").read_bytes()
    Path("runs/test/figures/fig1.json").write_text("{")
    assert cli.main(["report", "test"]) == 2
    assert "fig1.json is not the JSON object it should be" in capsys.readouterr().err
    assert Path("runs/test/html/index.html").read_bytes() == before
    assert sorted(path.name for path in Path("runs/test").iterdir()) == ["figures", "html", "keys", "notebooks"]


def odd(cell=(), **fields):
    """Writes a notebook of one code cell that has other fields, or the cell has."""
    whole = {"cell_type": "code", "id": "a", "source": "1", "metadata": {}, "execution_count": 1, "outputs": []}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{**whole, **dict(cell)}], **fields}
    return lambda: Path("runs/test/notebooks/03_x.ipynb").write_text(json.dumps(notebook))


@pytest.mark.parametrize(
    "write",
    [
        odd(metadata={"papermill": {"duration": "x", "parameters": None}}),
        odd(metadata={"papermill": [1]}),
        odd({"source": None}),
        odd({"outputs": None}),
    ],
)
def test_notebooks_without_what_says_nothing_are_pages_too(study, write):
    write()
    assert "03_x.html" in pages(report.write_report("test"))


def test_a_notebook_that_is_being_executed_is_no_page_yet(study):
    odd()()
    Path("runs/test/notebooks/03_x.ipynb").rename("runs/test/notebooks/.03_x.part.ipynb")
    assert not [name for name in pages(report.write_report("test")) if "03_x" in name]


def test_figures_are_those_of_the_runs_or_of_recorded_tables(study):
    def shown():
        return [link["href"] for link in pages(report.write_report("test"))["index.html"].select("figure#fig1 a")]

    there = shown()
    Path("figures").mkdir(exist_ok=True)
    Path("runs/test/figures").rename("figures/test")
    assert there and not shown()  # recorded ones are of other runs
    Path("figures/test/tables").mkdir()
    Path("figures/test/tables/record.json").write_text("{}")
    assert shown() == there


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda: Path("runs/test/notebooks/03_x.ipynb").write_text("{"), "03_x.ipynb"),
        (lambda: Path("runs/test/notebooks/03_x.ipynb").write_text("[" * 100_000), "03_x.ipynb is not a notebook"),
        (odd({"outputs": [{}]}), "03_x.ipynb is not a notebook"),
        (odd({"metadata": {"tags": ["a,b"]}}), "03_x.ipynb is not a notebook"),
        (odd(cells=3), "03_x.ipynb is not a notebook"),
        (odd(nbformat=99), "03_x.ipynb is not a notebook: it has nbformat 99"),
        (lambda: Path("runs/test/keys/done.json").write_text("{}"), "done.json is not what record.finish writes"),
        (lambda: Path("runs/test/figures/fig1.json").write_text("{}"), "fig1.json has no caption"),
        (lambda: Path("runs/test/figures/fig1.svg").unlink(), "fig1.json has no caption, or no .svg"),
    ],
)
def test_what_cannot_be_read_is_named(study, capsys, spoil, problem):
    spoil()
    assert cli.main(["report", "test"]) == 2
    assert problem in capsys.readouterr().err


def test_a_scale_without_executed_notebooks_says_what_to_run_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "editscale", "report", "laptop"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "run `make figures SCALE=laptop` first" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", ["", "../laptop", "a/b", ".."])
def test_a_scale_is_a_name_and_not_a_path(study, scale):
    with pytest.raises(ValueError, match="not the name of a scale"):
        report.write_report(scale)
