"""What a projection must put out so that the norm after it adds to the residual stream what is wanted.

In Gemma 2 and 3 an MLP's output y enters the stream as N(y) = g ⊙ y / √(mean(y²) + ε). To add r more, N(y′) = N(y) + r.
N forgets the size of y′, so all that it can add lies on one ellipsoid, {g ⊙ s : rms(s) = 1} but for ε, and r can be
had exactly only where it leads there. Else the nearest point of the ellipsoid is the best that this layer can do: with
t = N(y) + r, of all s with rms(s) = 1 the one with the smallest ‖g ⊙ s − t‖ is

    s = g ⊙ t / (g² + μ),   μ ≥ −min(g²) such that rms(s) = 1,

since ‖g ⊙ s − t‖² + μ‖s‖² is then convex and has its minimum there. Of all y′ along s the one as large as y is taken:
there is one at any angle, and what follows N is as sensitive to y′ as it was to y. Where r is small, it is the nearest
to y as well, up to terms of second order.
"""

STEPS = 100  # halvings of the interval of μ, more than float64 can tell


def change(norm, values, wanted):
    """The change of a projection's output that adds what is wanted after the norm, or the nearest to it; float64.

    Args:
        norm: an RMSNorm of Gemma, which multiplies by 1 + weight.
        values: y, (facts, d_model).
        wanted: r, (facts, d_model), what the stream should get besides N(y).

    Returns y′ − y, (facts, d_model), with ‖y′‖ = ‖y‖; 0 where nothing is wanted.
    """
    gain, y = 1 + norm.weight.double(), values.double()
    square = (y**2).mean(-1, keepdim=True)
    size = (square + norm.eps).sqrt()
    return size * nearest(gain, gain * y / size + wanted.double(), square.sqrt() / size) - y


def nearest(gain, target, radius):
    """The s with rms(s) = `radius` for which ‖gain ⊙ s − target‖ is smallest, (facts, d) float64.

    Args:
        gain: g, (d,); target: t, (facts, d); radius: (facts, 1), at most 1.

    rms(s) falls as μ grows; it is at least `radius` at the lower end of the interval that is halved, where one entry of
    s is large enough by itself, and at most `radius` at its upper end. An entry with the smallest g² and t = 0, where s
    could have either sign, gives NaN.
    """
    import torch

    pull, n = gain * target, target.shape[-1]
    alone = pull.abs() / (radius * n**0.5)
    low = (alone - gain**2).amax(-1, keepdim=True)
    high = torch.maximum(low, alone.norm(dim=-1, keepdim=True))
    for _ in range(STEPS):
        middle = (low + high) / 2
        long = (pull / (gain**2 + middle)).square().mean(-1, keepdim=True).sqrt() > radius
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    s = pull / (gain**2 + high)
    return s * radius / s.square().mean(-1, keepdim=True).sqrt()
