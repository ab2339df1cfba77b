"""Light copies hold what a reader needs and nothing of a machine, and the committed ones are those of the notebooks."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from tools import light, record

from editscale.workflow import cli
from editscale.workflow.parameters import seal

ROOT = Path(__file__).parents[1]
COPIES = sorted((ROOT / "figures").glob("*/notebooks/*.ipynb"))


def executed(folder, *, picture=True, stdout="5 facts\n", saved=("figures/tiny/fig1_a.png",)):
    """An executed notebook: what it was made with, a table, a picture, and the sentence that goes with it."""
    v4 = nbformat.v4
    start = v4.new_code_cell("record = start()", id="start", execution_count=1)
    start.outputs = [
        v4.new_output("display_data", {"text/plain": "python 3"}, metadata={"editscale": "made with"}),
        v4.new_output("stream", name="stderr", text="50%|"),
    ]
    table = v4.new_code_cell("table", id="table", metadata={"papermill": {"duration": 3.0}})
    html = "<div><style scoped>.a {}</style>\n<table></table></div>"
    table.outputs = [
        v4.new_output("execute_result", {"text/html": html, "text/plain": "t"}, execution_count=2),
        v4.new_output("stream", name="stdout", text=stdout),
    ]
    draw = v4.new_code_cell("plt.show()", id="draw")
    draw.outputs = [v4.new_output("display_data", {"image/png": "AAAA", "text/plain": "<Figure>"})] * picture
    save = v4.new_code_cell("record.figure()", id="save")
    save.outputs = [
        v4.new_output("display_data", {"text/markdown": "**Found.** Much."}, metadata={"figure": name})
        for name in saved
    ]
    injected = v4.new_code_cell("runs = []", metadata={"tags": ["injected-parameters"]})
    title = "# 9 · Title\n\n![Recorded figure 1](../figures/x/fig1_a.png)\n\n[8](08_b.ipynb), [9](09_title.ipynb), [paper](https://a.b)"
    cells = [v4.new_markdown_cell(title, id="title"), injected, start, table, draw, save]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, "papermill": {}}
    path = folder / "runs/tiny/notebooks/09_title.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def test_a_light_copy_keeps_tables_and_sentences_and_links_the_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    executed(tmp_path)
    (path,) = light.write("tiny")
    assert path == Path("figures/tiny/notebooks/09_title.ipynb")
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert [cell.id for cell in notebook.cells] == ["title", "values", "start", "table", "draw", "save", "picture-5"]
    assert notebook.cells[0].source == (
        "# 9 · Title\n\n[8](../../../notebooks/08_b.ipynb), [9](09_title.ipynb), [paper](https://a.b)"
    )
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert outputs["start"] == outputs["draw"] == []
    assert outputs["table"][0].data == {"text/html": "<div><table></table></div>"}
    assert outputs["table"][1].text == "5 facts\n"
    assert outputs["save"][0].data == {"text/markdown": "**Found.** Much."}
    assert notebook.cells[-1].source == "![fig1_a](../fig1_a.png)"
    assert "papermill" not in path.read_text() and "execution" not in path.read_text().replace("execution_count", "")
    before = path.read_bytes()
    executed(tmp_path)
    light.write("tiny")
    assert path.read_bytes() == before


def test_record_writes_light_copies_with_the_tables_or_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "record", lambda *_, **__: [])
    assert cli.main(["record", "tiny", "--notebooks"]) == 2
    assert "no executed notebook with figures" in capsys.readouterr().err
    assert cli.main(["record", "tiny"]) == 0 and not Path("figures").exists()
    assert capsys.readouterr().out.startswith("0 files")
    executed(tmp_path)
    for arguments in ([], ["--notebooks"]):
        assert cli.main(["record", "tiny", *arguments]) == 0
        assert capsys.readouterr().out.startswith("1 files in figures/tiny") and Path("figures/tiny/notebooks").is_dir()


def test_what_a_light_copy_cannot_show_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no executed notebook with figures in runs/tiny/notebooks"):
        light.write("tiny")
    executed(tmp_path, picture=False)
    with pytest.raises(ValueError, match="shows 0 pictures and saved 1 of them"):
        light.write("tiny")
    path = executed(tmp_path, stdout=f"{tmp_path}/facts.json\n")
    with pytest.raises(ValueError, match="a path of this machine"):
        light.write("tiny")
    notebook = nbformat.read(path, 4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])]
    nbformat.write(notebook, path)
    with pytest.raises(ValueError, match="09_title.ipynb failed"):
        light.write("tiny")
    notebook.cells[2].outputs = []
    nbformat.write(seal(notebook), path)
    path.write_text(path.read_text().replace("09_title", "09_tutle"))
    with pytest.raises(ValueError, match="09_title.ipynb was altered since it was executed"):
        light.write("tiny")
    assert not (tmp_path / "figures").exists()


def test_every_recorded_scale_has_light_copies_and_they_are_small():
    """Those that draw figures of their own: others hold runs that these draw too."""
    scales = {path.parent.parent.name for path in (ROOT / "figures").glob("*/tables/record.json")}
    drawing = {of for of in scales if [*(ROOT / "params" / of).glob("0[2-9]b_*.yaml")]}
    assert {path.parts[-3] for path in COPIES} == drawing
    assert sum(path.stat().st_size for path in COPIES) <= 3_000_000


@pytest.mark.parametrize("path", COPIES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_committed_copy_is_of_the_notebook_as_it_is_now_and_of_the_recorded_figures(path):
    source = nbformat.read(ROOT / "notebooks" / path.name, 4)
    copy = nbformat.read(path, 4)
    folder, copied = path.relative_to(ROOT).parent, {other.name for other in path.parent.glob("*.ipynb")}
    wanted = [
        (cell.id, light.prose(cell.source, folder, copied) if cell.cell_type == "markdown" else cell.source)
        for cell in source.cells
    ]
    own = [cell for cell in copy.cells if cell.id != "values" and not cell.id.startswith("picture-")]
    assert [(cell.id, cell.source) for cell in own] == wanted
    pictures = [cell.source for cell in copy.cells if cell.id.startswith("picture-")]
    assert pictures
    for link in pictures:
        (picture,) = re.findall(r"\]\((.+)\)", link)
        stem = (path.parent / picture).resolve().with_suffix("")
        caption = json.loads(stem.with_suffix(".json").read_text())["caption"]
        assert stem.with_suffix(".png").is_file() and f"**Found.** {caption}" in str(copy.cells)
