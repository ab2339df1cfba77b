"""One browsable report of a scale: `python -m editscale report laptop` writes runs/laptop/html.

An index with the figures and what each run was made with, and a page for every executed notebook (pages.py). The folder
can be copied anywhere and read without a network: its pages run no script and take nothing from outside the folder, and
tell the browser so (Content-Security-Policy).
"""

import json
import shutil
from datetime import datetime
from itertools import groupby
from pathlib import Path
from urllib.parse import quote, unquote

from editscale.files import sha256_file, whole_folder
from editscale.workflow.pages import TEMPLATES, counted, executed, up
from editscale.workflow.parameters import checked_scale


def write_report(scale: str, root: str | Path = ".") -> Path:
    """The index page of `runs/<scale>/html`, written anew from what `scale` has executed so far.

    Reads runs/<scale>/notebooks with its sub-folders, the figures in figures/<scale>, and every done.json of the scale.
    The folder is replaced as a whole: it never shows half a report, or pages of notebooks that are gone.

    Raises FileNotFoundError if no notebook has been executed, ValueError for a notebook, record or figure that cannot
    be read; the report that was there before then stays."""
    root, scale = Path(root), checked_scale(scale)
    runs, figures = root / "runs" / scale, root / "figures" / scale
    pages = executed(runs / "notebooks")
    if not pages:
        where = f"runs/{scale}/notebooks"
        raise FileNotFoundError(f"no executed notebook in {where}; run `make figures SCALE={scale}` first")
    drawn = [_figure(path) for path in counted(figures.glob("*.json"), figures)]
    records = [_record(path, runs, root) for path in counted(runs.rglob("done.json"), runs)]
    with whole_folder(runs / "html", replacing=True) as part:
        for before, page, after in zip([None, *pages], pages, [*pages[1:], None], strict=False):
            facts = {"page": page, "before": before, "after": after}
            _write_page(part / unquote(page.href), "notebook.html.j2", scale=scale, up=up(page.href), **facts)
        (part / "figures").mkdir()
        for file in (file for figure in drawn for file in figure["files"]):
            shutil.copyfile(file, part / "figures" / file.name)
        facts = {
            "pages": pages,
            "notebooks": [(name, list(group)) for name, group in groupby(pages, lambda page: page.notebook)],
            "page_of": {Path(page.out).as_posix(): page.href for page in pages},
            "figures": drawn,
            "records": records,
            "versions": _versions(records),
        }
        _write_page(part / "index.html", "index.html.j2", scale=scale, up="", **facts)
    return runs / "html" / "index.html"


def _figure(path: Path) -> dict:
    """What the index shows of the figure whose origin is in the .json `path`."""
    caption = _read_json(path).get("caption")
    files = [file for kind in ("svg", "png", "pdf", "csv", "json") if (file := path.with_suffix(f".{kind}")).is_file()]
    if files[0].suffix not in (".svg", ".png") or not isinstance(caption, str):
        raise ValueError(f"{path} has no caption, or no .svg or .png beside it; draw that figure again, or delete it")
    return {"name": path.stem, "caption": caption, "files": files}


def _record(path: Path, runs: Path, root: Path) -> dict:
    """What the index shows of one done.json."""
    done = _read_json(path)
    try:
        git, parameters, gpu = done["git"], done["parameters"], done["gpu"]
        chip = gpu if gpu and parameters.get("device") != "cpu" else done["cpu"]
        files = [(name, sha256, _state(root / name, sha256)) for name, sha256 in done["files"].items()]
        machine = {name: done[name] for name in ("python", "platform", "cpu", "gpu") if done[name]}
        return {
            "run": path.parent.relative_to(runs).as_posix(),
            "out": path.parent.relative_to(root).as_posix(),
            "started": datetime.fromisoformat(done["started"]),
            "finished": datetime.fromisoformat(done["finished"]),
            "device": f"{chip}, {parameters['dtype']}" if "dtype" in parameters else chip,
            "commit": "none" if git is None else git["commit"],
            "dirty": git is not None and git["dirty"],
            "code": done["code_sha256"],
            "files": files,
            "changed": [name for name, _, state in files if state != "same"],
            "parameters": [(name, json.dumps(value, ensure_ascii=False)) for name, value in parameters.items()],
            "versions": machine | done["packages"],
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not what provenance.finish writes ({error!r}); run that notebook again") from error


def _versions(records: list[dict]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each thing that has a version, with its versions and the runs that have them, "" where all runs agree."""
    rows = []
    for name in dict.fromkeys(name for record in records for name in record["versions"]):
        users = {}
        for record in records:
            users.setdefault(record["versions"].get(name, "none"), []).append(record["run"])
        rows.append((name, [(value, ", ".join(runs) if len(users) > 1 else "") for value, runs in users.items()]))
    return rows


def _state(path: Path, sha256: str) -> str:
    if not path.is_file():
        return "missing"
    return "same" if sha256_file(path) == sha256 else "changed"


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); make it again, or delete it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object; make it again, or delete it")
    return content


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _write_page(path: Path, template: str, **facts) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Everything is escaped but what a template calls safe: the style sheet and rendered cells.
    jinja = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    jinja.filters |= {"duration": _duration, "quote": quote}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(jinja.get_template(template).render(facts), encoding="utf-8")
