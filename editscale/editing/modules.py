"""What holds each editing method: a module of the package, or code of one's own.

A method is named by data/methods.yaml; or as "my_module:function", code beside or outside the package; or by an entry
point of group `editscale.methods` of an installed package; or by what `editors.register` was given. It is named here,
not imported: an edit rests on the code of its own method.
"""

import ast
import importlib.metadata
import inspect
import re
import symtable
import textwrap
from dataclasses import fields, is_dataclass

import yaml

from editscale import dependencies
from editscale.columns import method_label
from editscale.files import bundled

MODULES = yaml.safe_load(bundled("methods.yaml", counts=False).read_text(encoding="utf-8"))
REGISTERED = {}  # name ↦ (function or `Method`, the function whose code it is), of this process


def check_name(name):
    """Raise ValueError for what cannot name a method, and for one's own method called like one of the package."""
    found = method_label(name)
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", found):
        raise ValueError(f"{name!r} is no name of a method: letters, digits and hyphens, or my_module:function")
    if ":" in name and found in MODULES:
        raise ValueError(f"{name} would be called {found}, which is a method of editscale; give it another name")


def called(method, label=""):
    """What tables, figures and folders call the method of a run: the run's label, without one `columns.method_label`.

    Raises ValueError for what cannot be a label, and for the name of another method of the package.
    """
    name = method_label(method)
    if label and not re.fullmatch(r"[a-z0-9][a-z0-9-]*", label):
        raise ValueError(f"{label!r} is no label of a method: small letters, digits and hyphens")
    if label in MODULES and label != name:
        raise ValueError(f"{label} is another method of editscale than {method}; give its runs another label")
    return label or name


def located(name):
    """The module of a method and the name in it, "" where it is the module's METHODS[name]; None if there is none.

    Raises ValueError as `check_name` does.
    """
    if name in MODULES:
        return MODULES[name], ""
    check_name(name)
    if ":" not in name:
        offered = importlib.metadata.entry_points(group=dependencies.METHODS, name=name)
        name = next((entry.value for entry in offered), "")
    module, _, function = name.partition(":")
    return (module, function) if function else None


def code_of(name):
    """Python code that says what a method's edits rest on: an import of its module, or what was registered."""
    if name in REGISTERED:
        return _source(REGISTERED[name][1])
    found = located(name)
    return f"import {found[0]}\n" if found else ""


def used_by(parameters):
    """The modules of the methods that a notebook's parameters name, sorted.

    These are `method`, or those of `methods`, where none means all; no modules without either parameter. Unknown names
    are left to `editors.method`, registered ones are code of the notebook itself.
    """
    names = parameters.get("methods", []) or MODULES if "methods" in parameters else [parameters.get("method")]
    found = [located(name) for name in names if name and name not in REGISTERED]
    return sorted({place[0] for place in found if place})


def _source(function, seen=()):
    """Source of a function with what else it names: sources from the same file or notebook, imports of all others.

    Raises ValueError for a value of which a text cannot say what it is, such as a tensor, OSError without source.
    """
    code = textwrap.dedent(inspect.getsource(function))
    names = sorted(_globals_of(symtable.symtable(code, function.__name__, "exec")))
    parts, seen = [code], {*seen, function}
    for name, value in ((name, function.__globals__[name]) for name in names if name in function.__globals__):
        named = inspect.isroutine(value) or inspect.isclass(value)
        if inspect.ismodule(value):
            parts.append(f"import {value.__name__}\n")
        elif named and value.__module__ != function.__module__:
            parts.append(f"import {value.__module__}\n")
        elif inspect.isclass(value):
            named_fields = [(of.name, str(of.type)) for of in fields(value)] if is_dataclass(value) else []
            parts.append(f"{name} = {named_fields}\n")
            parts += [_source(of, seen) for of in _written_in(value) if of not in seen]
        elif named:
            parts += [] if value in seen else [_source(value, seen)]
        elif _is_literal(value):
            parts.append(f"{name} = {value!r}\n")
        else:
            raise ValueError(
                f"{function.__name__} uses {name}, a {type(value).__name__}, and nothing would tell when it changes; "
                "make it a number, a text, a list or dict of such, or a hyper-parameter"
            )
    return "".join(parts)


def _globals_of(table):
    """The names in a `symtable` that are those of globals: not arguments and other local names of functions."""
    module = table.get_type() == "module"
    own = {of.get_name() for of in table.get_symbols() if of.is_global() or module and of.is_referenced()}
    return own.union(*map(_globals_of, table.get_children()))


def _written_in(kind):
    """The functions and properties of a class that somebody wrote, and not a decorator such as dataclass."""
    functions = [value.fget if isinstance(value, property) else value for value in vars(kind).values()]
    return [of for of in functions if inspect.isfunction(of) and inspect.unwrap(of).__code__.co_filename != "<string>"]


def _is_literal(value):
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        return False
