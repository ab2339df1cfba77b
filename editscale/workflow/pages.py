"""An executed notebook as a static page: cells as HTML that runs no script and fetches nothing.

Outputs that need JavaScript are shown as their text, progress bars are folded away, links between notebooks lead to
their pages. Rendering of cells: nbconvert's template `basic`. Look: editscale/templates.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from editscale.workflow.parameters import read_notebook

TEMPLATES = Path(__file__).parents[1] / "templates"

# What may stay of the HTML in Markdown and outputs. Other elements are replaced by what they hold, some with it.
_KEPT = set(
    """a abbr article b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3
    h4 h5 h6 hr i img ins kbd li mark ol p pre q s samp section small span strong sub summary sup table tbody td tfoot
    th thead tr tt u ul var""".split()
)
_DROPPED = ("script", "style", "iframe", "object", "embed", "template", "noscript", "svg", "math", "form", "title")
_ATTRIBUTES = {"class", "id", "title", "alt", "src", "href", "colspan", "rowspan", "width", "height", "open", "start"}
_PICTURE = re.compile(r"data:image/(png|jpeg|gif|svg\+xml);base64,")

# The formats of an output that a static page can show, the most faithful first.
_FORMATS = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]


@dataclass(frozen=True)
class Page:
    """One executed notebook: its place among the pages, and what there is to say about it."""

    source: Path  # the executed .ipynb
    href: str  # the page, from the folder of all pages
    notebook: str  # name of the notebook that was executed
    run: str  # which of its runs, "" if there is one for all
    failure: str  # why it did not finish, in a sentence; "" if it did
    seconds: float | None  # how long it took, None if nobody measured
    out: str  # the folder it wrote into, "" if it has no such parameter
    title: str = ""
    question: str = ""  # the first paragraph below the title
    sections: tuple = ()  # (id, text) of its headings of level 2
    body: str = ""  # its cells as HTML

    @property
    def label(self) -> str:
        return f"{self.title}, {self.run}" if self.run else self.title


def executed(folder: str | Path) -> list[Page]:
    """Pages of all executed notebooks below `folder`, in the order of their numbers.

    `folder/05_drift.ipynb` is the one run of its notebook, `folder/02_editing/rome.ipynb` one of several of 02_editing.
    ValueError names a file that is not a notebook."""
    found = []
    for path in counted(Path(folder).rglob("*.ipynb"), Path(folder)):
        place = path.relative_to(folder)
        if not any(part.startswith(".") for part in place.parts):  # checkpoints of an editor
            notebook = read_notebook(path)
            found.append((_page(path, place, notebook), notebook))
    exporter = _exporter() if found else None
    return [_with_body(page, _cells_html(notebook, exporter), [page for page, _ in found]) for page, notebook in found]


def counted(paths, folder: Path) -> list[Path]:
    """Paths below `folder` in the order a reader counts: 2, 2b, 10."""

    def key(path):
        parts = (re.split(r"(\d+)", part) for part in path.relative_to(folder).with_suffix("").parts)
        return [[int(word) if word.isdigit() else word for word in words] for words in parts]

    return sorted(paths, key=key)


def up(href: str) -> str:
    """The way from a page to the folder of all pages."""
    return "../" * href.count("/")


def _page(path: Path, place: Path, notebook) -> Page:
    papermill = notebook.metadata.get("papermill", {})
    return Page(
        source=path,
        href=quote(place.with_suffix(".html").as_posix()),
        notebook=place.parts[0].removesuffix(".ipynb"),
        run="/".join(place.with_suffix("").parts[1:]),
        failure=_failure(notebook),
        seconds=papermill.get("duration"),
        out=str(papermill.get("parameters", {}).get("out", "")),
    )


def _failure(notebook) -> str:
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for output in (output for cell in code for output in cell.outputs):
        if output.output_type == "error":
            return f"{output.ename}: {output.evalue.strip() or 'no message'}".splitlines()[0]
    # papermill notes what became of each cell; a notebook executed by hand has no such notes.
    waiting = [cell for cell in code if cell.metadata.get("papermill", {}).get("status", "completed") != "completed"]
    return f"{len(waiting)} of its {len(code)} code cells were not executed to their end." if waiting else ""


def _with_body(page: Page, cells: str, pages: list[Page]) -> Page:
    from bs4 import BeautifulSoup

    body = BeautifulSoup(cells, "html.parser")
    _clean(body, page, pages)
    title = body.find("h1")
    paragraph = title.find_next("p") if title else None
    if title:
        title.extract()  # the page has its own
    return replace(
        page,
        title=_text(title) if title else page.notebook,
        question=_text(paragraph) if paragraph else "",
        sections=tuple((heading["id"], _text(heading)) for heading in body.select("h2[id]")),
        body=str(body),
    )


def _text(element) -> str:
    return " ".join(element.get_text().split())


def _exporter():
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    return HTMLExporter(
        template_name="basic",
        template_file="cells.html.j2",
        extra_template_paths=[str(TEMPLATES)],
        filters={"headline": _headline, "clean_html": lambda html: html},  # cleaned by _clean
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        anchor_link_text="",
        config=Config(NbConvertBase={"display_data_priority": _FORMATS}, CoalesceStreamsPreprocessor={"enabled": True}),
    )


def _cells_html(notebook, exporter) -> str:
    notebook.cells = [
        cell for cell in notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
    ]
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next(iter(re.findall(r"^#+ +(.+)$", cell.source, re.M)), heading)
        for output in cell.get("outputs", []):
            for kind in {"image/png", "image/jpeg"} & set(output.get("data", {})):
                output.metadata.setdefault(kind, {}).setdefault("alt", heading)  # for those who cannot see it
    return exporter.from_notebook_node(notebook)[0]


def _headline(text: str) -> str:
    """The line that stands for a cell's stderr: the last state of its last progress bar, else the first line."""
    lines = [line.split("\r")[-1].strip() for line in text.strip().splitlines()] or ["messages"]
    bars = [line for line in lines if re.search(r"\d%\|", line)]
    return re.sub(r"(\d%)\|[^|]*\|", r"\1", bars[-1]) if bars else lines[0]  # without the bar itself


def _clean(body, page: Page, pages: list[Page]) -> None:
    """Make rendered cells fit for a static page, in place: nothing active and nothing fetched, links that lead
    somewhere, tables that scroll by themselves, an anchor at the error."""
    for tag in [*body.find_all(_DROPPED), *body.select("a.anchor-link")]:
        tag.decompose()
    for tag in body.find_all(True):
        if tag.name not in _KEPT:
            tag.unwrap()
            continue
        tag.attrs = {name: value for name, value in tag.attrs.items() if name in _ATTRIBUTES}
        target = _target(tag.attrs.pop("href", ""), page, pages)
        if tag.name == "a" and target:
            tag["href"] = target
        elif tag.name == "a":
            tag.unwrap()
        source = tag.attrs.pop("src", "")
        if tag.name == "img" and _PICTURE.match(source):
            tag["src"] = source
        elif tag.name == "img":
            tag.replace_with(f"[picture: {tag.get('alt') or source}]")
    for table in body.find_all("table"):
        table.wrap(body.new_tag("div", attrs={"class": "scroll"}))
    if error := body.select_one(".output_error"):
        error["id"] = "error"


def _target(href: str, page: Page, pages: list[Page]) -> str:
    """Where a link of a notebook leads; "" if nowhere.

    Notebooks name one another as they lie in notebooks/. One that was executed several times is its list of runs."""
    try:
        parts = urlsplit(href)
    except ValueError:
        return ""
    if parts.scheme in ("http", "https", "mailto") or (href.startswith("#") and len(href) > 1):
        return href
    path = Path(unquote(parts.path))
    if parts.scheme or parts.netloc or path.suffix != ".ipynb":
        return ""
    found = [other for other in pages if path.stem in (other.notebook, other.source.stem)]
    if len(found) > 1:
        return f"{up(page.href)}index.html#{quote(found[0].notebook)}"
    fragment = f"#{parts.fragment}" if parts.fragment else ""
    return up(page.href) + found[0].href + fragment if found else ""
