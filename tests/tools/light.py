"""Light copies of executed notebooks, to be read where the repository is hosted: figures/<scale>/notebooks.

A copy has the cells as they were executed, with tables and printed sentences. Pictures are links to recorded ones;
times, progress bars and what differs from machine to machine are left out: the same findings give the same bytes.
"""

import os
import re
from pathlib import Path

from editscale.files import write_whole
from editscale.workflow.parameters import altered, checked_scale, read_notebook, seal

SHOWN = (
    "text/html",
    "text/markdown",
    "text/latex",
    "text/plain",
)  # formats of an output; the first that it has is kept


def write(scale):
    """Write the light copies of the notebooks that a scale has executed once for all runs; their paths.

    Raises FileNotFoundError if it has executed none, ValueError as `light` does.
    """
    drawing = executed(scale)
    if not drawing:
        raise FileNotFoundError(f"no executed notebook with figures in runs/{scale}/notebooks; run make figures first")
    folder, names = Path("figures") / scale / "notebooks", {path.name for path in drawing}
    return [write_whole(folder / path.name, light(path, folder, names)) for path in drawing]


def executed(scale):
    """Paths of the notebooks that a scale has executed once for all runs and that saved figures in figures/."""
    paths = sorted((Path("runs") / checked_scale(scale) / "notebooks").glob("[!.]*.ipynb"))
    figures = {path: [figure for cell in read_notebook(path).cells for figure in _figures_of(cell)] for path in paths}
    return [path for path in paths if any(figure.parts[0] == "figures" for figure in figures[path])]


def light(path, folder, copied):
    """The bytes of the light copy of an executed notebook, to be put into `folder` beside those of the names `copied`.

    Raises ValueError if the notebook did not run to its end, was altered since, shows pictures that it did not save, or
    names a path of this machine.
    """
    import nbformat

    notebook, cells, shown, saved = read_notebook(path), [], 0, 0
    if altered(notebook):
        raise ValueError(f"{path} was altered since it was executed; run it again before it is recorded")
    for number, cell in enumerate(notebook.cells):
        injected = "injected-parameters" in cell.metadata.get("tags", [])
        if cell.cell_type != "code":
            cells.append(nbformat.v4.new_markdown_cell(prose(cell.source, folder, copied), id=cell.id))
            continue
        if any(output.output_type == "error" for output in cell.outputs):
            raise ValueError(f"{path} failed; run it again before it is recorded")
        figures = _figures_of(cell)
        shown, saved = (
            shown + sum("image/png" in output.get("data", {}) for output in cell.outputs),
            saved + len(figures),
        )
        kept = nbformat.v4.new_code_cell(cell.source, id="values" if injected else cell.id)
        kept.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        kept.outputs = [light for output in cell.outputs if (light := _light(output))]
        cells.append(kept)
        for picture in figures:
            link = f"![{picture.stem}]({Path(os.path.relpath(picture, folder)).as_posix()})"
            cells.append(nbformat.v4.new_markdown_cell(link, id=f"picture-{number}"))
    if shown != saved:
        raise ValueError(
            f"{path} shows {shown} pictures and saved {saved} of them by record.figure; save each it shows"
        )
    copy = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": notebook.metadata.kernelspec})
    text = nbformat.writes(seal(copy))
    if (here := Path.cwd().as_posix()) in text:
        raise ValueError(f"{path} holds {here}, a path of this machine; name files from the repository's root")
    return (text + "\n").encode()


def prose(text, folder, copied):
    """The text of a Markdown cell as it stands in a copy in `folder`: links lead to the same files from there.

    A link to a notebook that is `copied` leads to its copy. The recorded figure that a notebook embeds and the link to
    its copy are left out.
    """
    left_out = "![Recorded figure", "Executed on the recorded study:"
    paragraphs = [paragraph for paragraph in text.split("\n\n") if not paragraph.startswith(left_out)]

    def link(match):
        target = Path(os.path.normpath(Path("notebooks") / match[1]))
        if target.name in copied:
            target = folder / target.name
        return f"]({Path(os.path.relpath(target, folder)).as_posix()})"

    return re.sub(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)", link, "\n\n".join(paragraphs))


def _figures_of(cell):
    """The PNG files that `Record.figure` wrote in a cell."""
    outputs = cell.get("outputs", [])
    return [Path(output.metadata["figure"]) for output in outputs if "figure" in output.get("metadata", {})]


def _light(output):
    """What of an output is kept; None for nothing."""
    from nbformat.v4 import new_output

    if output.output_type == "stream":
        return None if output.name == "stderr" else new_output("stream", name="stdout", text=output.text)
    if "editscale" in output.metadata or "image/png" in output.data:
        return None
    kind = next((kind for kind in SHOWN if kind in output.data), None)
    if kind is None:
        return None
    text = output.data[kind]
    if kind == "text/html":
        text = re.sub(r"<style scoped>.*?</style>\n?", "", text, flags=re.S)
    return new_output("display_data", data={kind: text})
