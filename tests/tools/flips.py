"""Change one bit of what a run or a scale left, read all of it again, and see whether that is noticed.

A flip is *named* if the error, or a warning, names the file; it has *no effect* if all that is read is what it was
before. Every other outcome is a failure: other values without a word, an error that names another file, or one that
is no ValueError or OSError.
"""

import functools
import hashlib
import warnings
from collections import Counter
from pathlib import Path

import pandas as pd

from editscale.analysis import disabling, mitigations, tables, targets
from editscale.files import read_record, vouched
from editscale.models import loading
from editscale.sequences import past_runs
from editscale.sequences.ledger import Ledger
from editscale.workflow import provenance, timing
from editscale.workflow.parameters import altered, read_notebook
from tools import recorded

NAMED, NO_EFFECT = "named", "no effect"


def flipped(files, read, rng, n=3, *, every_file=True):
    """How often flips had which outcome: a table (file, flips, named, no effect), and what failed, in words.

    Args:
        files: paths, each flipped `n` times, or, if not `every_file`, n of all flips at random files.
        read: path ↦ digest of all that is read and could depend on that file; raises what reading raises.
        rng: a `random.Random`.
    """
    files, whole = [path for path in files if path.stat().st_size], functools.cache(read)
    chosen = [path for path in files for _ in range(n)] if every_file else rng.choices(files, k=n)
    found, failures = Counter(), []
    for path in chosen:
        expected, content = whole(path), path.read_bytes()
        place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        try:
            outcome = _outcome(path, read, expected)
        finally:
            path.write_bytes(content)
        found[path.name, outcome if outcome in (NAMED, NO_EFFECT) else "failed"] += 1
        if outcome not in (NAMED, NO_EFFECT):
            failures.append(f"{path}, byte {place} ^ {bit}: {outcome}")
    counts = pd.Series(found).unstack(fill_value=0).reindex(columns=[NAMED, NO_EFFECT, "failed"], fill_value=0)
    return counts.rename_axis("file").reset_index(), failures


def _outcome(path, read, expected):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            same, said = read(path) == expected, ""
        except (ValueError, OSError) as error:
            same, said = False, str(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    said = " ".join([said, *(str(warning.message) for warning in warned)])
    if path.name in said:
        return NAMED
    return NO_EFFECT if same else f"other values, or another file named: {said or 'nothing said'}"


load = functools.cache(loading.load)


def read_run(folder):
    """Digest of what replay and the notebooks that ask, edit again or gather read of a finished run."""
    folder, total = Path(folder), hashlib.sha256()
    run = past_runs.reopen(folder, load=load)
    for part, names in recorded.PARTS.items():
        record = read_record(folder / part / "done.json", "")
        total.update(repr(record).encode())
        if part:
            total.update(repr(timing.read(folder / part)).encode())
        for name in (recorded.name_of(part, name) for name in names):
            if name not in recorded.OPTIONAL or (folder / f"{name}.parquet").is_file():
                total.update(tables.joined([folder], name).to_csv().encode())
    editing = past_runs.editing_of(run)
    for factor in editing.factors.values():
        total.update(factor.contiguous().numpy())
    said = run.key, editing.params, editing.contexts, recorded._timing(folder), read_ledger(folder)
    total.update(repr(said).encode())
    return total.hexdigest()


def read_ledger(folder):
    """Digest of all that a ledger holds but its times."""
    book, total = Ledger(folder), hashlib.sha256()
    for edit in range(1, len(book) + 1):
        for name, array in sorted(book.factors(edit).items()):
            total.update(name.encode() + array.tobytes())
    total.update(repr((book.fingerprint, book.weights, book.rows, book.unedited())).encode())
    return total.hexdigest()


def is_of_figure(path):
    """Whether a file is one of those that a figure is written to."""
    return path.with_name(f"{path.name.split('.')[0]}.svg").is_file()


def read_beside(path):
    """Digest of what is read of one file beside runs: a table of its own, a figure, or an executed notebook."""
    if path.suffix == ".ipynb":
        notebook = read_notebook(path)
        if altered(notebook):
            raise ValueError(f"{path} was altered since it was executed")
        return repr(notebook)
    if path.suffix == ".parquet":
        of = {"acceptance": targets.read_measured, "overlap": mitigations.read_overlap}
        return of.get(path.stem, disabling.read_single)(path).to_csv()
    if path.name in ("done.json", "record.json"):
        return repr(read_record(path, ""))
    if is_of_figure(path):
        return repr(provenance.read_figure(path.with_name(f"{path.name.split('.')[0]}.json")))
    return vouched(path, "").decode()


def read_recorded(tables_folder, path):
    """Digest of what is read of recorded tables that depends on one of their files."""
    folder, name = Path(tables_folder), path.relative_to(tables_folder).with_suffix("").as_posix()
    if path.stem in recorded.BESIDE:
        return read_beside(path)
    if path.name == recorded.RECORD:
        return repr(read_record(path, ""))
    return tables.joined([folder], name).to_csv() if name != recorded.TIMING else _timing(path)


def _timing(path):
    return tables.read(path, "").to_csv()


def flipped_study(rng, n, runs=Path("runs/smoke"), scale=Path("figures/smollm2")):
    """`flipped` of a finished study as a whole and of a recorded scale: n flips in each, at random files."""
    ledgers = [path.parent for path in runs.glob("*/*/ledger.json")]
    finished = [folder for folder in ledgers if (folder / "done.json").is_file()]

    def read_study(path):
        book = next((folder for folder in ledgers if folder in path.parents), None)
        if path.suffix == ".safetensors":
            return [read_run(folder) for folder in finished]
        if book is None or is_of_figure(path):
            return read_beside(path)
        return read_run(book) if book in finished else read_ledger(book)

    def read_scale(path):
        return read_recorded(scale / "tables", path) if "tables" in path.parts else read_beside(path)

    places = [runs.glob("**/*.*"), *(scale.glob(name) for name in ("fig*.*", "notebooks/*.ipynb", "tables/**/*.*"))]
    files = [path for place in places for path in place if path.is_file() and path.name[0] != "."]
    files = [path for path in sorted(files) if path.suffix != ".done" and not {"html", "models"} & {*path.parts}]
    studied = [path for path in files if runs in path.parents]
    recorded_ones = [path for path in files if scale in path.parents and path.name != "reruns.csv"]
    counts, failures = flipped(studied, read_study, rng, n, every_file=False)
    others, more = flipped(recorded_ones, read_scale, rng, n, every_file=False)
    return pd.concat([counts, others]).groupby("file", as_index=False).sum(), failures + more
