"""Functions of numbers that Triton lacks, or has in a form that loses digits or NaN.

They are for float32, and give NaN of NaN.  Gluon's kernels call them, too.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def maximum_or_nan(x, y):
    """The larger of two, and NaN where one of them is: one instruction, too."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum_or_nan(x, y):
    """The smaller of two, likewise."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def if_positive(x, y):
    """y where x > 0, NaN where x is NaN, else 0."""
    above = maximum_or_nan(x, 0.0)
    return tl.where(above > 0.0, y, above)


@triton.jit
def log1p(x):
    """log(1 + x) with the digits of a small x.

    Rounding makes u of 1 + x, and log(u) is as far from log(1 + x) as u - 1 is from x (Kahan).
    """
    u = 1.0 + x
    rounded = u - 1.0
    logarithm = tl.log(u)
    small = tl.where(rounded == 0.0, x, logarithm * (x / rounded))
    return tl.where(rounded == x, logarithm, small)  # of infinity, too


@triton.jit
def expm1(x):
    """exp(x) - 1 with the digits of a small x: near 0 by the first eight terms of the series."""
    series = x * (1 / 40320) + 1 / 5040
    series = series * x + 1 / 720
    series = series * x + 1 / 120
    series = series * x + 1 / 24
    series = series * x + 1 / 6
    series = series * x + 1 / 2
    series = series * x + 1.0
    return tl.where(tl.abs(x) < 0.5, series * x, tl.exp(x) - 1.0)


@triton.jit
def tanh(x):
    """The hyperbolic tangent; in float32 it is 1 from 10 on."""
    e = expm1(2.0 * minimum_or_nan(x, 10.0))
    return e / (e + 2.0)


@triton.jit
def erfc(x):
    """1 - erf(x) with the digits of a small result.

    Past 1/2 by t · exp(-x² + P(t)), t = 1 / (1 + x/2).  The polynomial P was fitted to erfc from 0.4 to 10.2,
    where float32 ends, at Chebyshev nodes of t: its error there is 1.2e-7.
    """
    t = 1.0 / (1.0 + 0.5 * x)
    p = t * -0.22652151 + 0.89468862
    p = p * t - 1.2183119
    p = p * t + 0.52456201
    p = p * t - 0.11953573
    p = p * t + 0.41458951
    p = p * t + 0.99581039
    p = p * t - 1.2653273
    return tl.where(x < 0.5, 1.0 - tl.erf(x), t * tl.exp(p - x * x))
