"""The report of a scale is whole, offline and safe; comparing two runs finds what differs and nothing else."""

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

from editscale.workflow import cli, compare, report
from editscale.workflow.provenance import finish, provenance

HOSTILE = "<script>alert(1)</script> & <img src='https://example.org/x.png' onerror='alert(1)'>"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
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
    bar = "\rkeys:   0%|          | 0/2\rkeys: 100%|██████████| 2/2 [00:01<00:00, 2it/s]\n"
    table = shown(text_html=pd.DataFrame({"fact": [HOSTILE]}).to_html(), text_plain="plain table")
    cells = [
        new_markdown_cell(text),
        new_markdown_cell(link),
        code("x = 1", stream(bar, "stderr"), stream(HOSTILE), table),
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
    finish("runs/test/keys", ["runs/test/keys/keys.csv"], provenance({"device": "cpu", "name": HOSTILE}))
    Path("figures/test").mkdir(parents=True)
    Path("figures/test/fig1.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    Path("figures/test/fig1.csv").write_text("a\n1\n")
    Path("figures/test/fig1.json").write_text(json.dumps({"caption": f"Keys: {HOSTILE}"}))


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
    following = ["01_keys.html"]
    while link := made[following[-1]].select_one("a[rel=next]"):
        following.append(link["href"].removeprefix("../"))
    assert following == listed


def test_titles_and_questions_come_from_the_notebooks(made):
    index = made["index.html"]
    assert [title.get_text() for title in index.select("#notebooks h3")] == ["1 · Keys", "2 · Edits", "10 · End"]
    assert "What are keys?" in index.select_one("#notebooks").get_text()
    assert "1 min 1 s" in index.select_one("[id='01_keys']").get_text()


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
    assert article.select("td") and not article.find_all(["script", "img", "a", "form", "input"])
    assert "[picture:" in article.get_text() and "go" in article.get_text()
    assert "alert" not in article.select_one("td").get_text()


def test_progress_bars_are_folded_behind_their_last_state(made):
    page = made["01_keys.html"]
    assert page.select_one("details.messages summary").get_text() == "keys: 100% 2/2 [00:01<00:00, 2it/s]"
    assert not page.select_one("details.messages").has_attr("open")


def test_failed_and_unfinished_notebooks_are_named_in_the_index_and_on_their_pages(made):
    named = {box.a["href"]: box.get_text() for box in made["index.html"].select(".failure")}
    assert set(named) == {"02_edits/memit-order-0.html", "10_end.html"}
    assert "ValueError: order 12" in named["02_edits/memit-order-0.html"]
    assert "1 of its 2 code cells" in named["10_end.html"]
    failed = made["02_edits/memit-order-0.html"]
    assert failed.select_one(".failure a")["href"] == "#error" and "order 12" in failed.find(id="error").get_text()
    assert not made["01_keys.html"].select(".failure")


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
    assert sorted(path.name for path in Path("runs/test").iterdir()) == ["html", "keys", "notebooks"]


def test_equal_inputs_give_equal_bytes(study):
    index = report.write_report("test")
    before = {path: path.read_bytes() for path in index.parent.rglob("*") if path.is_file()}
    report.write_report("test")
    assert {path: path.read_bytes() for path in index.parent.rglob("*") if path.is_file()} == before


def test_a_report_that_cannot_be_written_leaves_the_old_one(study, capsys):
    before = report.write_report("test").read_bytes()
    Path("figures/test/fig1.json").write_text("{")
    assert cli.main(["report", "test"]) == 2
    assert "fig1.json is not JSON" in capsys.readouterr().err
    assert Path("runs/test/html/index.html").read_bytes() == before
    assert sorted(path.name for path in Path("runs/test").iterdir()) == ["html", "keys", "notebooks"]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda: Path("runs/test/notebooks/03_x.ipynb").write_text("{"), "03_x.ipynb"),
        (lambda: Path("runs/test/keys/done.json").write_text("{}"), "done.json is not what provenance.finish writes"),
        (lambda: Path("figures/test/fig1.json").write_text("{}"), "fig1.json has no caption"),
        (lambda: Path("figures/test/fig1.svg").unlink(), "fig1.json has no caption, or no .svg"),
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


# -------------------------------------------------------------------------------------------------- compare


def edits(**columns):
    """A table of four edits with one score."""
    table = pd.DataFrame({"method": "rome", "order": 0, "edits": [1, 2, 3, 4], "efficacy": [1.0, 0.5, None, 0.25]})
    return table.assign(**columns)


def write_run(folder, table, *, printed="4 edits\n", started="2026-01-01T10:00:00+00:00", commit="a" * 12):
    """An executed run: a notebook, its tables and its record."""
    folder.mkdir(parents=True)
    table.to_parquet(folder / "edits.parquet")
    table.to_csv(folder / "fig1.csv", index=False)
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    (folder / "timing.jsonl").write_text(f'{{"edit": 1, "seconds": "{started}"}}\n')
    origin = f"run\npython  3.11\ncommit  {commit}\ncode  {commit}\nstarted  {started}\n"
    outputs = [stream(printed), stream(f"{started} 100%|███|", "stderr"), stream(f"at {started}, <x at 0x{commit}>")]
    outputs += [new_output("display_data", {"text/plain": origin, "text/html": f"<b>{origin}</b>"})]
    write_executed(folder / "notebooks/02_edits.ipynb", new_markdown_cell("# 2"), code("run()", *outputs))
    record = provenance({"n_edits": len(table)}) | {"started": started, "git": {"commit": commit, "dirty": False}}
    (folder / "done.json").write_text(json.dumps({**record, "finished": started, "files": {}}))
    return folder


@pytest.fixture
def run_a(tmp_path):
    return write_run(tmp_path / "a", edits())


def test_runs_that_differ_in_times_and_commits_alone_are_equal(run_a, tmp_path):
    b = write_run(tmp_path / "b", edits(), started="2026-02-02T11:11:11+00:00", commit="b" * 12)
    lines, same = compare.compare(run_a, b)
    assert same and "Tables: 3 of 3 equal" in lines and "Notebooks: 1 of 1 equal" in lines


def test_a_changed_number_is_found_in_every_table_with_its_row_and_size(run_a, tmp_path):
    b = write_run(tmp_path / "b", edits(efficacy=[1.0, 0.4, None, 0.24]))
    lines, same = compare.compare(run_a, b)
    assert not same and "Tables: 0 of 3 equal" in lines and "Notebooks: 1 of 1 equal" in lines
    expected = "efficacy: 2 of 4 rows, at most 0.1 at method rome, order 0, edits 2, relative 0.2"
    assert sum(line.strip() == expected for line in lines) == 3


def test_rows_are_matched_by_what_they_measure_and_not_by_their_place():
    shuffled = edits().iloc[[2, 0, 3, 1]]
    assert compare.table_difference(edits(), shuffled) == []
    lines = compare.table_difference(edits(), edits(edits=[1, 2, 3, 5]))
    assert lines == [
        "1 of 4 rows only in A: method rome, order 0, edits 4",
        "1 of 4 rows only in B: method rome, order 0, edits 5",
    ]


def test_rows_that_share_their_keys_are_matched_in_their_order():
    a, b = edits(edits=1), edits(edits=1).iloc[:3]
    assert compare.table_difference(a, b) == ["1 of 4 rows only in A: method rome, order 0, edits 1, 4. of its kind"]
    a, b = pd.DataFrame({"value": [1.0, 2.0]}), pd.DataFrame({"value": [1.0, 3.0]})
    assert compare.table_difference(a, b) == ["value: 1 of 2 rows, at most 1 at row 2, relative 0.333"]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"efficacy": [1.0, 0.5, 0.5, 0.25]}, "efficacy: 1 of 4 rows, 1 not finite on one side, first nan and 0.5 at"),
        (
            {"efficacy": [1.0, float("inf"), None, 0.25]},
            "efficacy: 1 of 4 rows, 1 not finite on one side, first 0.5 and inf",
        ),
        ({"status": "edited"}, "columns only in B: status"),
        ({"order": 1}, "4 of 4 rows only in A: method rome, order 0, edits 1; method rome, order 0, edits 2; "),
    ],
)
def test_each_kind_of_difference_between_tables_has_its_line(columns, line):
    assert any(found.startswith(line) for found in compare.table_difference(edits(), edits(**columns)))


def test_text_that_differs_is_counted_and_shown():
    a, b = edits(status="edited"), edits(status=["edited", "edited", "non-finite", "edited"])
    line = "status: 1 of 4 rows, first edited and non-finite at method rome, order 0, edits 3"
    assert compare.table_difference(a, b) == [line]


def test_equal_values_in_other_bytes_are_equal(run_a, tmp_path):
    b = write_run(tmp_path / "b", edits())
    edits().to_parquet(b / "edits.parquet", compression="gzip")
    assert (b / "edits.parquet").read_bytes() != (run_a / "edits.parquet").read_bytes()
    assert compare.compare(run_a, b)[1]


def test_a_changed_output_or_source_of_a_notebook_is_shown(run_a, tmp_path):
    b = write_run(tmp_path / "b", edits(), printed="5 edits\n")
    lines, same = compare.compare(run_a, b)
    text = [line.strip() for line in lines]
    assert not same and "-  4 edits" in text and "+  5 edits" in text
    notebook = "notebooks/02_edits.ipynb"
    assert any("5 edits" in line for line in compare.notebook_difference(run_a / notebook, b / notebook))
    other = write_executed(tmp_path / "c.ipynb", new_markdown_cell("# 2"), code("run(again=True)"))
    assert any("run(again=True)" in line for line in compare.notebook_difference(run_a / notebook, other))


def test_a_file_or_run_on_one_side_only_is_a_difference(run_a, tmp_path):
    b = write_run(tmp_path / "b", edits())
    (b / "fig1.csv").unlink()
    (b / "done.json").unlink()
    lines, same = compare.compare(run_a, b)
    text = "\n".join(lines)
    assert not same and "fig1.csv\n      only in A" in text and "finished only in A" in text


def test_parameters_are_a_difference_and_versions_are_only_told(run_a, tmp_path):
    b = write_run(tmp_path / "b", edits())
    record = json.loads((b / "done.json").read_text())
    record["packages"]["torch"] = "1.0"
    (b / "done.json").write_text(json.dumps(record))
    lines, same = compare.compare(run_a, b)
    assert same and any("packages.torch" in line and "1.0" in line for line in lines)
    record["parameters"]["n_edits"] = 5
    (b / "done.json").write_text(json.dumps(record))
    lines, same = compare.compare(run_a, b)
    assert not same and any("n_edits 4 and 5" in line for line in lines)


def test_the_exit_status_is_that_of_diff(run_a, tmp_path, capsys):
    b = write_run(tmp_path / "b", edits(efficacy=0.0))
    assert cli.main(["compare", str(run_a), str(run_a)]) == 0
    assert cli.main(["compare", str(run_a), str(b)]) == 1
    assert cli.main(["compare", str(run_a), str(tmp_path / "missing")]) == 2
    assert "missing, which does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda a, b: (b / "edits.jsonl").write_text('{"edit"'), "edits.jsonl cannot be read as a table"),
        (lambda a, b: (b / "edits.parquet").write_bytes(b"x"), "edits.parquet cannot be read as a table"),
        (lambda a, b: (b / "fig1.csv").write_text(""), "fig1.csv cannot be read as a table"),
        (lambda a, b: (b / "done.json").write_text("{}"), "done.json is not what provenance.finish writes"),
        (lambda a, b: (b / "notebooks/02_edits.ipynb").write_text("{"), "02_edits.ipynb"),
    ],
)
def test_files_that_cannot_be_compared_are_named(run_a, tmp_path, capsys, spoil, problem):
    b = write_run(tmp_path / "b", edits())
    spoil(run_a, b)
    assert cli.main(["compare", str(run_a), str(b)]) == 2
    assert problem in capsys.readouterr().err


def test_only_two_of_a_kind_with_something_in_them_can_be_compared(run_a, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").touch()
    for other, problem in [
        (tmp_path / "empty", "holds no table and no notebook"),
        (tmp_path / "text.txt", "neither a folder"),
        (run_a / "notebooks/02_edits.ipynb", "two of one kind"),
    ]:
        with pytest.raises(ValueError, match=problem):
            compare.compare(run_a, other)
