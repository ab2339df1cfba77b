"""Second moments of keys, C = E[k kᵀ]: what an edit weighs a change of the weights against.

A key is the input of a layer's MLP output projection at one token. The moment is uncentered, a mean over all
tokens of a corpus, and belongs to the unedited model; editing a projection does not change its own C.
Accumulated in float64 whatever the model's dtype. With fewer than about 10·d_key tokens C is close to
singular.

Source: kmeng01/rome `rome/layer_stats.py` and `util/runningstats.py` (`SecondMoment`), which run once per
layer; here all layers share one pass, which ends at the deepest of them.
"""

import bisect
import hashlib
import itertools
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path

from editscale.files import sealed, unsealed, whole_file
from editscale.kernels import transfer
from editscale.models import tokens
from editscale.models.anatomy import segment, watching

# Documents are sorted by length within groups of this many, as in the released code; it saves padding.
GROUP = 100
BATCH_TOKENS = 4096
# Columns of C that a CPU computes together, and only from the diagonal down.
COLUMNS = 512
# Columns of the squares on the diagonal that a GPU computes whole.
SQUARE = 1024


@dataclass(frozen=True)
class SecondMoments:
    """C of some layers of one model on one corpus.

    Attributes:
        moments: layer ↦ C, (d_key, d_key), float64, symmetric, on the CPU.
        n_tokens: number of keys each C is the mean of.
        identity: what they were computed from, in strings: model, weights and corpus with their sha256.
    """

    moments: dict
    n_tokens: int
    identity: dict


def collect(lm, documents, layers, n_tokens=None, *, corpus="", batch_tokens=BATCH_TOKENS, progress=True):
    """`SecondMoments` of some layers on the first `n_tokens` tokens of a corpus; None takes all of it.

    Arguments and errors are those of `collect_at`. The last document is not cut: n_tokens may come out
    larger.
    """
    if n_tokens is None:
        documents = list(documents)
        n_tokens = sum(map(len, documents))
    return collect_at(lm, documents, layers, [n_tokens], corpus=corpus, batch_tokens=batch_tokens, progress=progress)[
        -1
    ]


def collect_at(lm, documents, layers, counts, *, corpus="", batch_tokens=BATCH_TOKENS, progress=True, times=None):
    """`SecondMoments` after each of several numbers of tokens, in one pass over one corpus.

    Args:
        lm: the unedited model; its identity is written down as that of the moments.
        documents: token ids, one sequence per document (see `corpora`); read as far as needed.
        layers: 0-indexed layers.
        counts: ascending numbers of tokens; each is rounded up to whole documents.
        corpus: what the documents are, in words.
        batch_tokens: rows × width of a padded batch, at most (a longer document makes a batch of its own).
        times: a `timing.Timing` that gets the seconds of each group of documents as part "second moments", or None.

    Returns a list as long as `counts`. Padding never enters, and neither batch size nor order of batches
    changes the result beyond rounding.

    Raises ValueError if the documents have fewer tokens than asked for, are empty, or are longer than the
    model reads.
    """
    import torch
    from tqdm import tqdm

    layers, counts = sorted(set(layers)), list(counts)
    for layer in layers:
        lm.check_layer(layer)
    if not layers or not counts or counts[0] < 1 or counts != sorted(counts):
        raise ValueError(f"second moments need layers and ascending numbers of tokens, not {layers} and {counts}")

    if isinstance(documents, list):  # all that will be read, before anything runs
        whole = list(itertools.takewhile(len, documents))
        ends = list(itertools.accumulate(map(len, whole)))
        tokens.check(lm, whole[: bisect.bisect_left(ends, counts[-1]) + 1])
    device = _with_float64(lm.device)
    sums = {layer: torch.zeros(lm.d_key, lm.d_key, dtype=torch.float64, device=device) for layer in layers}
    read, group, collected = _Read(iter(documents), corpus), [], []
    with tqdm(total=counts[-1], desc="second moments", unit="token", disable=not progress) as bar:
        for count in counts:
            room = transfer.Room(sums[layers[0]], len(layers))
            while read.n_tokens < count:
                group.append(read.next_document(lm, count))
                if len(group) == GROUP or read.n_tokens >= count:
                    began, n = time.perf_counter(), sum(map(len, group))
                    for keys in token_keys(lm, group, layers, batch_tokens):
                        for layer, k in keys.items():
                            _add_products(sums[layer], k.to(sums[layer]))
                    if times is not None:
                        sums[layers[-1]][0, 0].item()  # waits for a GPU
                        times.add("second moments", n, time.perf_counter() - began)
                    bar.update(n)
                    group = []
            means = {layer: room.to_cpu(_symmetric(total / read.n_tokens)) for layer, total in sums.items()}
            collected.append(SecondMoments(means, read.n_tokens, read.identity(lm)))
    return collected


@dataclass
class _Read:
    """What was read of a corpus so far."""

    documents: object
    corpus: str
    n_tokens: int = 0
    n_documents: int = 0
    longest: int = 0
    digest: object = field(default_factory=hashlib.sha256)

    def next_document(self, lm, wanted):
        """The token ids of the next document. Raises ValueError if there is none, or the model cannot read it."""
        document = [int(token) for token in next(self.documents, ())]
        if not document:
            raise ValueError(
                f"the corpus ends, or has an empty document, after {self.n_documents} documents with {self.n_tokens} "
                f"tokens; {wanted} were asked for"
            )
        tokens.check(lm, [document])
        self.digest.update((" ".join(map(str, document)) + "\n").encode())
        self.n_tokens, self.n_documents = self.n_tokens + len(document), self.n_documents + 1
        self.longest = max(self.longest, len(document))
        return document

    def identity(self, lm):
        """What second moments of all that was read are computed from."""
        return {
            "model": lm.name,
            "weights_sha256": lm.identity.get("weights_sha256", ""),
            "config_sha256": lm.identity.get("config_sha256", ""),
            "dtype": str(lm.dtype).removeprefix("torch."),
            "corpus": self.corpus,
            "tokens_sha256": self.digest.hexdigest(),
            "n_documents": str(self.n_documents),
            "n_tokens": str(self.n_tokens),
            "longest_document": str(self.longest),
            "transformers": metadata.version("transformers"),
            **({"after_start_token": "true"} if lm.after_start_token else {}),
        }


def token_keys(lm, documents, layers, batch_tokens=BATCH_TOKENS):
    """Keys of all tokens of a list of documents at some layers, batch by batch.

    Yields layer ↦ keys (tokens of the batch, d_key) in the model's dtype; rows follow the batch, not the
    documents' order. The forward ends with the deepest layer's projection.
    """
    import torch

    layers = sorted(set(layers))
    run = segment(lm, 0, layers[-1] + 1)
    for batch in _batches(documents, batch_tokens):
        ids, lengths = tokens.pad(batch, lm.device)
        positions, mask = tokens.causal(lengths, ids.shape[1], lm.dtype)
        # Found here: to look for them on a GPU, the host would wait for it at every layer.
        places = torch.cat([i * ids.shape[1] + torch.arange(len(of)) for i, of in enumerate(batch)]).to(ids.device)
        keys = {}
        with torch.no_grad(), ExitStack() as watched:
            for layer in layers:
                note = partial(_note, keys, layer)
                watched.enter_context(watching(lm.projection(layer), note))
            run(ids, mask, positions)
        yield {layer: keys[layer].flatten(0, 1)[places] for layer in layers}


def weighed(keys, factor):
    """C⁻¹K, (d_key, n) float64, from keys K (d_key, n) and the lower Cholesky factor of C, (d_key, d_key) float64.

    Raises ValueError if the keys do not fit the factor.
    """
    import torch

    if factor.shape[0] != keys.shape[0]:
        raise ValueError(
            f"keys have {keys.shape[0]} entries but the second moment is {factor.shape[0]} × {factor.shape[1]}; it was "
            "collected for another model or layer"
        )
    return torch.cholesky_solve(keys.double(), factor)


def divided(found, inner):
    """found inner⁻¹, (d_key, n), where inner (n, n) is symmetric.

    A number is divided by where it is: to look whether a matrix has an inverse, the host waits for a GPU.
    """
    import torch

    return found / inner if len(inner) == 1 else torch.linalg.solve(inner, found.T).T


def spectrum(moment, device="cpu"):
    """Eigenvalues of C, descending, (d_key,), float64, on the CPU.

    Args:
        device: where they are computed; one without float64 (MPS) leaves it to the CPU.
    """
    import torch

    return torch.linalg.eigvalsh(moment.to(_with_float64(device), torch.float64)).flip(0).cpu()


def condition_number(eigenvalues):
    """Largest over smallest of the eigenvalues of C, descending; infinite where C is singular to rounding."""
    largest, smallest = eigenvalues[0].item(), eigenvalues[-1].item()
    return largest / smallest if smallest > largest * len(eigenvalues) * 2**-52 else float("inf")


def convergence(collected, keys):
    """How far C has settled after each number of tokens, compared with the last one.

    Args:
        collected: `SecondMoments` of growing parts of one corpus, from `collect_at`.
        keys: layer ↦ keys (n, d_key), tokens that edits care about; solved for where they are.

    Returns:
        One dict per number of tokens and layer: `n_tokens`, `layer`, `difference` (‖C_n − C‖ / ‖C‖,
        Frobenius) and `cosine`, the mean over keys of cos(C_n⁻¹k, C⁻¹k): the direction a rank-one edit writes
        along. It is NaN where C_n has no inverse.
    """
    import torch

    reference, rows = collected[-1], []
    directions = {layer: _solved(C, keys[layer]) for layer, C in reference.moments.items()}
    for part in collected:
        for layer, C in part.moments.items():
            cosines = torch.nn.functional.cosine_similarity(_solved(C, keys[layer]), directions[layer], dim=0)
            final = reference.moments[layer].to(_with_float64(keys[layer].device))
            difference = (C.to(final.device) - final).norm() / final.norm()
            rows.append(
                {
                    "n_tokens": part.n_tokens,
                    "layer": layer,
                    "difference": difference.item(),
                    "cosine": cosines.mean().item(),
                }
            )
    return rows


def _solved(C, keys):
    """C⁻¹k of keys (n, d_key), as columns; NaN where C is singular to rounding."""
    import torch

    device = _with_float64(keys.device)
    k = keys.to(device, torch.float64).T
    factor, failed = torch.linalg.cholesky_ex(C.to(device))
    pivots = factor.diagonal() ** 2
    if failed or pivots.min() < pivots.max() * len(C) * 2**-52:
        return torch.full_like(k, float("nan"))
    return torch.cholesky_solve(k, factor)


def _with_float64(device):
    """The device, or the CPU in place of one that has no float64 (MPS)."""
    import torch

    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def save(second_moments, path):
    """Write second moments to one safetensors file, float64, with their identity and its own sha256 in its header.

    The identity names the content of each matrix: "layer.<layer>" ↦ sha256.
    """
    from safetensors.torch import save_file

    moments = {f"layer.{layer}": moment.contiguous() for layer, moment in second_moments.moments.items()}
    contents = {name: _sha256(moment) for name, moment in moments.items()}
    with whole_file(path) as part:
        save_file(moments, part, metadata=sealed({**second_moments.identity, **contents}))


def _sha256(moment):
    return hashlib.sha256(moment.numpy()).hexdigest()


def load(path, lm, layers):
    """The `SecondMoments` of some layers, read from a file and checked to be those of this model's weights.

    Their identity names the content of these layers' matrices, "layer.<layer>" ↦ sha256, and of no others.

    Raises FileNotFoundError without the file, ValueError if it is damaged, belongs to another model or other
    weights, is of texts after start tokens where the model reads them without (or the reverse), or lacks a layer.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"no second moments for {lm.name} at {path}; run notebook 01 with the same params")
    try:
        with safe_open(path, "pt") as file:
            identity = unsealed(file.metadata() or {}, path, "run notebook 01 again")
            names = ("weights_sha256", *(["config_sha256"] if "config_sha256" in identity else []))
            for name, own in (("model", lm.name), *((name, lm.identity.get(name, "")) for name in names)):
                if identity.get(name) != own:
                    raise ValueError(
                        f"the second moments in {path} have {name} {identity.get(name)!r}, but "
                        f"the model is {lm.name} with {name} {own!r}; run notebook 01 for this "
                        "model"
                    )
            if (after := "after_start_token" in identity) != lm.after_start_token:
                raise ValueError(
                    f"the second moments in {path} are of texts {'after' if after else 'without'} a start token, and "
                    f"{lm.name} is to read {'without' if after else 'after'} one; run notebook 01 with the same "
                    f"start_token ({str(lm.after_start_token).lower()}) and another out folder, or set it here as it "
                    "was set there"
                )
            if not identity.get("n_tokens", "").isdecimal():
                raise ValueError(f"{path} does not say from how many tokens it is; run notebook 01 again")
            stored = set(file.keys())
            for layer in layers:
                lm.check_layer(layer)
                if f"layer.{layer}" not in stored:
                    raise ValueError(
                        f"no second moment for {lm.name} layer {layer} in {path}, only "
                        f"{', '.join(sorted(stored))}; run notebook 01 with the same params"
                    )
            moments = {layer: file.get_tensor(f"layer.{layer}") for layer in layers}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}); run notebook 01 again") from error
    for layer, moment in moments.items():
        if tuple(moment.shape) != (lm.d_key, lm.d_key) or moment.dtype != torch.float64:
            raise ValueError(
                f"{path} has a second moment of layer {layer} of shape {tuple(moment.shape)} in {moment.dtype}, not "
                f"{lm.d_key} × {lm.d_key} in float64; run notebook 01 again"
            )
    contents = {f"layer.{layer}": _sha256(moment) for layer, moment in moments.items()}
    for name, sha256 in contents.items():
        if identity.get(name, sha256) != sha256:
            raise ValueError(f"{path} is damaged: {name} is not what was written into it; run notebook 01 again")
    made_of = {name: value for name, value in identity.items() if not name.startswith("layer.")}
    return SecondMoments(moments, int(identity["n_tokens"]), made_of | contents)


def _add_products(total, keys):
    """Add kᵀk of keys (n, d_key) to the lower triangle of `total`, and to some of what is above it."""
    if total.device.type == "cuda":
        _add_halves(total, keys)
        return
    for start in range(0, len(total), COLUMNS):
        block = slice(start, start + COLUMNS)
        total[start:, block].addmm_(keys[:, start:].T, keys[:, block])


def _add_halves(total, keys):
    """`_add_products` in few and large products, as a GPU is slow at narrow ones.

    Of a square on the diagonal the quarter below it is one product, and the two quarters on it are squares on the
    diagonal again. Those of one size are one batch: 1, 2, 4, …
    """
    n, size = 1, len(total)
    while size > SQUARE and size % 2 == 0:
        size //= 2
        both = keys.unflatten(1, (n, 2, size))  # (tokens, squares, half, columns)
        left, right = both[:, :, 1].permute(1, 2, 0), both[:, :, 0].transpose(0, 1)
        _squares(total, n, 2 * size, size, below=size).baddbmm_(left, right)
        n *= 2
    each = keys.unflatten(1, (n, size))
    _squares(total, n, size, size).baddbmm_(each.permute(1, 2, 0), each.transpose(0, 1))


def _squares(total, n, step, size, below=0):
    """(n, size, size): squares of a matrix at every `step` of its diagonal, or so many rows below that."""
    row, column = total.stride()
    return total.as_strided((n, size, size), (step * (row + column), row, column), below * row)


def _symmetric(total):
    return total.tril() + total.tril(-1).T


def _batches(documents, batch_tokens):
    """Documents in batches of at most `batch_tokens` padded tokens, longest first."""
    batch = []
    for document in sorted(documents, key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch


def _note(keys, layer, key, _):
    keys[layer] = key
