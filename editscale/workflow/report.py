"""One browsable report of a scale: `python -m editscale report laptop` writes runs/laptop/html.

An index with the figures and what each run was made with, and a page for every executed notebook. The folder can be
copied anywhere and read without a network: its pages run no script and take nothing from outside the folder, and tell
the browser so (Content-Security-Policy).
"""

import functools
import json
import re
import shutil
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from urllib.parse import quote, unquote, urldefrag

from editscale.files import read_record, sha256_file, whole_folder
from editscale.workflow.parameters import altered, checked_scale, read_notebook
from editscale.workflow.provenance import read_figure

TEMPLATES = Path(__file__).parents[1] / "templates"
# What may stay of the HTML in Markdown and outputs; of other elements only their text stays.
TAGS = """a abbr b blockquote br caption code del details div dl dt dd em h1 h2 h3 h4 h5 h6 hr i img kbd li ol p pre s
    small span strong sub summary sup table tbody td tfoot th thead tr u ul""".split()
ATTRIBUTES = "class id title alt colspan rowspan width height open start".split()
# The formats of an output that a static page can show, the most faithful first.
FORMATS = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]


@dataclass(frozen=True)
class Page:
    """One executed notebook: its place among the pages, and what there is to say about it."""

    source: Path  # the executed .ipynb
    href: str  # the page, from the folder of all pages
    notebook: str  # name of the notebook that was executed
    run: str  # which of its runs, "" if there is one for all
    title: str
    failure: str  # why it is no result, in a sentence; "" if it is one
    out: str  # the folder it wrote into, "" if it has no such parameter

    @property
    def label(self) -> str:
        return f"{self.title}, {self.run}" if self.run else self.title

    @property
    def up(self) -> str:
        """The way to the folder of all pages."""
        return "../" * self.href.count("/")


def write_report(scale: str, root: str | Path = ".") -> Path:
    """The index page of `runs/<scale>/html`, written anew from what `scale` has executed so far.

    Reads runs/<scale>/notebooks with its sub-folders, every done.json of the scale, and its figures: those in
    runs/<scale>/figures, or those that were drawn of recorded tables in figures/<scale>.
    The folder is replaced as a whole: it never shows half a report, or pages of notebooks that are gone.

    Raises FileNotFoundError if no notebook has been executed, ValueError for a notebook, record or figure that cannot
    be read; the report that was there before then stays."""
    root, scale = Path(root), checked_scale(scale)
    runs, figures = root / "runs" / scale, root / "runs" / scale / "figures"
    if not figures.is_dir() and (root / "figures" / scale / "tables" / "record.json").is_file():
        figures = root / "figures" / scale
    folder = runs / "notebooks"
    paths = [path for path in _counted(folder, "**/*.ipynb") if not _is_hidden(path.relative_to(folder))]
    if not paths:
        where = f"runs/{scale}/notebooks"
        raise FileNotFoundError(f"no executed notebook in {where}; run `make figures SCALE={scale}` first")
    notebooks = [read_notebook(path) for path in paths]
    pages = [_page(path, path.relative_to(folder), notebook) for path, notebook in zip(paths, notebooks, strict=True)]
    facts = {
        "scale": scale,
        "pages": pages,
        "notebooks": [(name, list(group)) for name, group in groupby(pages, lambda page: page.notebook)],
        "page_of": {Path(page.out).as_posix(): page.href for page in pages},
        "figures": [_figure(path) for path in _counted(figures, "*.json")],
        "records": [_record(path, runs, root) for path in _counted(runs, "**/done.json")],
    }
    facts["versions"] = _versions(facts["records"])
    with whole_folder(runs / "html", replacing=True) as part:
        for page, notebook in zip(pages, notebooks, strict=True):
            body = _body(notebook, page, pages, root / "figures")
            _write_page(part / unquote(page.href), "page.html.j2", scale=scale, up=page.up, page=page, body=body)
        (part / "figures").mkdir()
        for file in (file for figure in facts["figures"] for file in figure["files"]):
            shutil.copyfile(file, part / "figures" / file.name)
        _write_page(part / "index.html", "index.html.j2", up="", page=None, body="", **facts)
    return runs / "html" / "index.html"


# ------------------------------------------------------------------------------------------------ notebooks


def _counted(folder, pattern):
    """Paths in a folder in the order a reader counts: 2, 2b, 10."""

    def key(path):
        parts = (re.split(r"(\d+)", part) for part in path.relative_to(folder).with_suffix("").parts)
        return [[int(word) if word.isdigit() else word for word in words] for words in parts]

    return sorted(folder.glob(pattern), key=key)


def _is_hidden(path):
    """Whether a file or a folder of a path is hidden: checkpoints of an editor, a notebook that is being executed."""
    return any(part.startswith(".") for part in path.parts)


def _page(path, place, notebook):
    """`05_drift.ipynb` is the one run of its notebook, `02a_editing/rome.ipynb` one of several of 02a_editing."""
    name = place.parts[0].removesuffix(".ipynb")
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    title = next((line[2:] for line in prose.splitlines() if line.startswith("# ")), name)
    given = notebook.metadata.get("papermill", {}).get("parameters")
    out = str(given.get("out", "")) if isinstance(given, dict) else ""
    run = "/".join(place.with_suffix("").parts[1:])
    return Page(path, quote(place.with_suffix(".html").as_posix()), name, run, title, _failure(notebook), out)


def _failure(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for output in (output for cell in code for output in cell.outputs):
        if output.output_type == "error":
            return f"{output.ename}: {output.evalue.strip() or 'no message'}".splitlines()[0]
    # papermill notes what became of each cell; a notebook executed by hand has no such notes.
    waiting = [cell for cell in code if cell.metadata.get("papermill", {}).get("status", "completed") != "completed"]
    if waiting:
        return f"{len(waiting)} of its {len(code)} code cells were not executed to their end."
    return "It was altered since it was executed." if altered(notebook) else ""


def _body(notebook, page, pages, folder):
    """The cells of a notebook as HTML that neither runs nor fetches anything, with figures of `folder` embedded."""
    notebook.cells = [
        cell for cell in notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        cell.metadata = {"alt": page.label}  # of its pictures
        if cell.cell_type == "markdown":
            cell.source = _linked(cell.source.replace("](../figures/", "]("), page, pages)
        for output in (output for output in cell.get("outputs", []) if "metadata" in output):
            output.metadata = {}
    return _exporter().from_notebook_node(notebook, {"metadata": {"path": str(folder)}})[0]


@functools.cache
def _exporter():
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    return HTMLExporter(
        template_name="basic",
        sanitize_html=True,
        embed_images=True,
        filters={"clean_html": _clean},
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        config=Config(NbConvertBase={"display_data_priority": FORMATS}, CoalesceStreamsPreprocessor={"enabled": True}),
    )


def _linked(text, page, pages):
    """A Markdown text whose links to notebooks lead to their pages; other links into the repository become text.

    Notebooks name one another as they lie in notebooks/. One that was executed several times is its list of runs."""

    def link(match):
        path, fragment = urldefrag(unquote(match[2]))
        found = [other for other in pages if Path(path).stem in (other.notebook, other.source.stem)]
        if not path.endswith(".ipynb") or not found:
            return match[1]
        one = f"{found[0].href}#{fragment}".rstrip("#")
        return f"[{match[1]}]({page.up}{one if len(found) == 1 else f'index.html#{quote(found[0].notebook)}'})"

    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)\s]*[./][^)\s]*)\)", link, text)


def _clean(html):
    """HTML with what TAGS and ATTRIBUTES name, links to safe addresses and pictures that it holds itself."""
    import bleach

    def allowed(tag, name, value):
        form = {"href": r"https?:|mailto:|#|[\w.%-][\w./%-]*(#|$)", "src": "data:image/[a-z+]+;base64,"}.get(name)
        return name in ATTRIBUTES if form is None else re.match(form, value) is not None

    text = re.sub(r"<(script|style)\b.*?</\1\s*>", "", str(html), flags=re.S | re.I)  # that is no text to read
    safe = {"http", "https", "mailto", "data"}
    return bleach.clean(text, tags=TAGS, attributes=allowed, protocols=safe, strip=True)


# ------------------------------------------------------------------------------------- figures and records


def _figure(path):
    """What the index shows of the figure whose origin is in the .json `path`."""
    caption = read_figure(path).get("caption")
    files = [file for kind in ("svg", "png", "pdf", "csv", "json") if (file := path.with_suffix(f".{kind}")).is_file()]
    if files[0].suffix not in (".svg", ".png") or not isinstance(caption, str):
        raise ValueError(f"{path} has no caption, or no .svg or .png beside it; draw that figure again, or delete it")
    return {"name": path.stem, "caption": caption, "files": files}


def _record(path, runs, root):
    """What the index shows of one done.json."""
    done = read_record(path, "run that notebook again")
    try:
        git, parameters, gpu = done["git"], done["parameters"], done["gpu"]
        chip = gpu if gpu and parameters.get("device") != "cpu" else done["cpu"]
        files = [(name, sha256, _state(root / name, sha256)) for name, sha256 in done["files"].items()]
        started, finished = (datetime.fromisoformat(done[name]) for name in ("started", "finished"))
        return {
            "run": path.parent.relative_to(runs).as_posix(),
            "out": path.parent.relative_to(root).as_posix(),
            "started": started,
            "finished": finished,
            "took": str(finished - started),
            "device": f"{chip}, {parameters['dtype']}" if "dtype" in parameters else chip,
            "commit": "none" if git is None else git["commit"] + (" + changes" if git["dirty"] else ""),
            "code": done["code_sha256"],
            "files": files,
            "changed": [name for name, _, state in files if state != "same"],
            "parameters": {name: json.dumps(value, ensure_ascii=False) for name, value in parameters.items()},
            "versions": {name: done[name] for name in ("python", "platform", "cpu", "gpu") if done[name]}
            | done["packages"],
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not what record.finish writes ({error!r}); run that notebook again") from error


def _versions(records):
    """Each thing that has a version, with its versions and the runs that have them, "" where all runs agree."""
    rows = []
    for name in dict.fromkeys(name for record in records for name in record["versions"]):
        users = {}
        for record in records:
            users.setdefault(record["versions"].get(name, "none"), []).append(record["run"])
        rows.append((name, [(value, ", ".join(runs) if len(users) > 1 else "") for value, runs in users.items()]))
    return rows


def _state(path, sha256):
    return "missing" if not path.is_file() else "same" if sha256_file(path) == sha256 else "changed"


def _write_page(path, template, **facts):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Everything is escaped but what a template calls safe: the style sheet and rendered cells.
    jinja = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    jinja.filters["quote"] = quote
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(jinja.get_template(template).render(facts), encoding="utf-8")
