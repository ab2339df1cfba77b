"""What one edit of every method costs, beside MEMIT's."""

from pathlib import Path

from editscale.editing import hparams


def hparams_file(name, stem):
    """The file with a method's hyper-parameters for a model: in its own folder, else with those of its kind.

    Raises FileNotFoundError if there is none.
    """
    folders = dict.fromkeys((hparams.folder("rome").parent / name, hparams.folder(name)))
    paths = [Path(folder) / f"{stem}.yaml" for folder in folders]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"no hyper-parameters of {name} for {stem} at {' or '.join(map(str, paths))}")
