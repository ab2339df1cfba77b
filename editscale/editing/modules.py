"""Which module holds each editing method. They are named, not imported: an edit rests on those of its own method."""

import yaml

from editscale.files import bundled

MODULES = yaml.safe_load(bundled("methods.yaml", counts=False).read_text(encoding="utf-8"))


def used_by(parameters):
    """The modules of the methods that a notebook's parameters name, sorted.

    These are `method`, or those of `methods`, where none means all; no modules without either parameter. Unknown names
    are left to `editors.method`.
    """
    names = parameters.get("methods", []) or MODULES if "methods" in parameters else [parameters.get("method")]
    return sorted({MODULES[name] for name in names if name in MODULES})
