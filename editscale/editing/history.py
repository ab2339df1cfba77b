"""The matrix that a solve of MEMIT's family inverts, with the keys of earlier edits: H = (B + S)⁻¹.

B is fixed for a run, S the sum of k kᵀ over the keys that were edited before. H is never formed: it is B⁻¹ − Y Yᵀ with
one column of Y for each earlier key (Woodbury), so that an edit costs one solve with a factor made once.
"""

from dataclasses import dataclass, replace
from functools import partial

from editscale.editing import moments


@dataclass(frozen=True)
class Inverse:
    """H of one layer.

    Attributes:
        of_base: K (d_key, n) float64 ↦ B⁻¹K.
        columns: Y, (d_key, keys so far) float64, None before the first.
    """

    of_base: object
    columns: object = None

    def times(self, keys):
        """H K of keys K (d_key, n), float64."""
        keys = keys.double()
        found = self.of_base(keys)
        return found if self.columns is None else found - self.columns @ (self.columns.T @ keys)

    def after(self, keys):
        """The inverse once these keys K, (d_key, n), are among those edited before.

        With G = HK it is H − G (I + KᵀG)⁻¹ Gᵀ: the new columns of Y are G L⁻ᵀ, where L Lᵀ = I + KᵀG.
        """
        import torch

        found = self.times(keys)
        inner = torch.eye(keys.shape[1], dtype=found.dtype, device=found.device) + keys.double().T @ found
        if len(inner) == 1:  # see `moments.divided`
            new = found / inner.sqrt()
        else:
            new = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), found.T, upper=False).T
        return replace(self, columns=new if self.columns is None else torch.cat([self.columns, new], dim=1))


def solve(inverse, keys, own=1.0):
    """A = H K (own · I + KᵀHK)⁻¹, (d_key, n) float64. With own = 1 it is (B + S + KKᵀ)⁻¹K (Woodbury)."""
    import torch

    found = inverse.times(keys)
    inner = own * torch.eye(keys.shape[1], dtype=found.dtype, device=found.device) + keys.double().T @ found
    return moments.divided(found, inner)


def of_moment(factor, weight, ridge=0.0):
    """`Inverse` with B = weight · C + ridge · I, from the lower Cholesky factor of C, (d_key, d_key) float64."""
    import torch

    if ridge:
        whole = weight * (factor @ factor.T) + ridge * torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        factor, weight = torch.linalg.cholesky(whole), 1.0
    return Inverse(partial(_weighed, factor, weight))


def _weighed(factor, weight, keys):
    return moments.weighed(keys, factor) / weight


def of_null_space(factor, threshold, ridge):
    """`Inverse` with B = ridge · I on the directions in which C has eigenvalues below a threshold, and none elsewhere.

    It is P / ridge, P being the projection onto these directions: H K needs no other mention of P, since all of Y lies
    among them. arXiv:2410.02355; AlphaEdit `experiments/evaluate.py`, which takes singular values of C in float32.
    """
    import torch

    values, directions = torch.linalg.eigh(factor @ factor.T)
    return Inverse(partial(_projected, directions[:, values >= threshold], ridge))


def _projected(others, ridge, keys):
    return (keys - others @ (others.T @ keys)) / ridge
