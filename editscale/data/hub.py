"""Data sets of the Hugging Face hub."""


def open_dataset(name, config, split, revision, *, advice=""):
    """A split of a data set of the hub, or of a local folder, as `datasets` reads it.

    Raises FileNotFoundError, which ends in `advice`, if it cannot be read for any reason.
    """
    import datasets

    try:
        return datasets.load_dataset(name, config or None, split=split, revision=revision or None)
    except Exception as error:  # offline, no such config or split, damaged files: a type of its own for each
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"data set {name!r} (config {config!r}, split {split!r}, revision {revision!r}) could not be read: "
            f"{type(error).__name__}: {reason}{advice}"
        ) from error
