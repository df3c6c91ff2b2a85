"""Whether the weights φ(q)·φ(k) of an elementwise map keep one sign, so that their sum can be divided by.

Nothing is proved here.  A map is objected to for numbers that show it: places at which φ has both signs, or
is undefined.  They are searched in floating point, on a grid and at the bottom of every dip between its
points, and checked in many digits, so that rounding neither invents nor excuses one.  A map of which no such
place is found is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mpmath  # type: ignore[import-untyped]
from sympy import Expr, Rational

from . import functions as f

DIGITS = (40, 80)
"""Precisions in which a finding must be the same."""
FARTHEST = 1e9
"""Largest argument of a function that is evaluated: digits of exp and sin beyond it cost too much."""
DIPS, SHRINKING = 24, 60
"""How many dips are searched, the lowest first, and in how many steps each."""

Function = Callable[[Any, Any], Any]
"""From numbers, which are mpmath's `fp` or `mp`, and x to a value."""


NEAR = 2.0
"""Most queries and keys have components no larger than this: projections of what a norm has scaled."""


@dataclass(frozen=True)
class Objection:
    """What speaks against dividing by the sum of a map's weights; not `grave` if only rare inputs show it."""

    shown: str
    grave: bool


class _Undefined(ArithmeticError):
    """The map has no real value there."""


class _Unknown(ArithmeticError):
    """The value is too large or too small to be computed."""


def objection(expr: Expr) -> Objection | None:
    """Numbers that show that φ has both signs, or somewhere no value; None if there seem to be none.

    A map that is nowhere positive has weights as positive as one that is nowhere negative.  Grave is what
    components up to `NEAR` show, and a missing value anywhere: the state carries one NaN to all later tokens.
    """
    function, grid = _compiled(expr), _grid(expr)
    values: dict[float, float] = {}
    for x in grid:
        try:
            values[x] = _real(function, mpmath.fp, x)
        except _Undefined:
            if _is_undefined(function, x):
                return Objection(f"φ({_number(x)}) is undefined", True)
        except _Unknown:
            continue
    near = {x: value for x, value in values.items() if abs(x) <= NEAR}
    for places in (near, values):
        if shown := _both_signs(function, places):
            return Objection(shown, places is near)
    return None


def _both_signs(function: Function, values: dict[float, float]) -> str | None:
    """A positive and a negative value, near places whose values are known."""
    signs: dict[bool, str] = {}
    for x, value in values.items():
        _sort(signs, function, x, value)
    if len(signs) == 1:
        for x, value in _bottoms(function, values, True not in signs):
            _sort(signs, function, x, value)
    return " and ".join(signs.values()) if len(signs) == 2 else None


def _sort(signs: dict[bool, str], function: Function, x: float, value: float) -> None:
    """Note a value under its sign unless there is one already, or the sign is not beyond doubt."""
    if value == 0 or (value > 0) in signs:
        return
    try:
        exact = [_exact(function, x, digits) for digits in DIGITS]
    except ArithmeticError:
        return
    if exact[1] * value > 0 and abs(exact[0] - exact[1]) < abs(exact[1]) / 100:
        signs[value > 0] = f"φ({_number(x)}) = {_number(float(exact[1]))}"


def _is_undefined(function: Function, x: float) -> bool:
    for digits in DIGITS:
        try:
            _exact(function, x, digits)
        except _Undefined:
            continue
        except _Unknown:
            return False
        return False
    return True


def _exact(function: Function, x: float, digits: int) -> Any:
    with mpmath.workdps(digits):
        return _real(function, mpmath.mp, mpmath.mpf(x))


def _real(function: Function, numbers: Any, x: Any) -> Any:
    """φ(x), which is a real number, or an error."""
    try:
        value = function(numbers, x)
    except ZeroDivisionError:
        raise _Undefined from None
    except OverflowError:
        raise _Unknown from None
    if value != value or abs(value) == numbers.inf:
        raise _Unknown
    return value


def _grid(expr: Expr) -> list[float]:
    """Where a map is tried, simple numbers first: around 0, far away, and at the constants that it names."""
    simple = [0.0, *range(1, 11), 0.5, 1.5, 2.5, *(10.0**-n for n in range(1, 9))]
    fine = [n / 16 for n in range(1, 129)]
    far = [12, 16, 20, 30, 50, 100, 300, 1e3, 1e4]
    constants = {abs(float(c)) for c in expr.atoms(Rational)}
    near = [c + step for c in sorted(constants) for step in (0, 1e-3 * max(1, c), -1e-3 * max(1, c), 1, -1)]
    return list(dict.fromkeys(s * x + 0.0 for x in (*simple, *fine, *far, *near) for s in (-1, 1)))


def _bottoms(function: Function, values: dict[float, float], below: bool) -> Iterator[tuple[float, float]]:
    """Places in the dips between those whose values are known, lower and lower; of -φ if `below`."""
    places = sorted(values)
    heights = [-values[x] if below else values[x] for x in places]
    dips = [
        i
        for i in range(1, len(places) - 1)
        if heights[i] <= min(heights[i - 1], heights[i + 1])
        and heights[i] < max(heights[i - 1], heights[i + 1])
    ]
    ratio = (math.sqrt(5) - 1) / 2
    for i in sorted(dips, key=heights.__getitem__)[:DIPS]:
        low, high = places[i - 1], places[i + 1]
        for _ in range(SHRINKING):
            left, right = high - ratio * (high - low), low + ratio * (high - low)
            try:
                found = _real(function, mpmath.fp, left), _real(function, mpmath.fp, right)
            except ArithmeticError:
                break
            yield from zip((left, right), found, strict=True)
            if (found[0] < found[1]) != below:
                high = right
            else:
                low = left


def _number(value: float) -> str:
    return f"{value:.6g}"


# -- φ as a function of numbers of any precision -------------------------------------------------------------


def _sigmoid(n: Any, u: Any) -> Any:
    return 1 / (1 + n.exp(-u)) if u >= 0 else n.exp(u) / (1 + n.exp(u))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.Absolute.text: lambda n, u: abs(u),
    f.Sigmoid.text: _sigmoid,
    f.Relu.text: lambda n, u: max(u, n.zero),
    f.Elu.text: lambda n, u: u if u > 0 else n.expm1(u),
    f.Softplus.text: lambda n, u: max(u, n.zero) + n.log1p(n.exp(-abs(u))),
    f.Silu.text: lambda n, u: u * _sigmoid(n, u),
    f.Gelu.text: lambda n, u: u * n.erfc(-u / n.sqrt(2)) / 2,
    f.Minimum.text: lambda n, a, b: min(a, b),
    f.Maximum.text: lambda n, a, b: max(a, b),
}
"""The others are mpmath's functions of the same name."""


def _compiled(expr: Expr) -> Function:
    if expr.is_Symbol:
        return lambda n, x: x
    if expr.is_Rational:
        above, under = int(expr.p), int(expr.q)
        return lambda n, x: n.mpf(above) / under
    if expr.is_Pow:
        base, exponent = _compiled(expr.base), int(expr.exp)
        return lambda n, x: base(n, x) ** exponent
    parts = [_compiled(part) for part in expr.args]
    if expr.is_Add:
        return lambda n, x: sum((part(n, x) for part in parts), n.zero)
    if expr.is_Mul:
        return lambda n, x: math.prod((part(n, x) for part in parts), start=n.one)
    return lambda n, x: _apply(n, expr.text, [part(n, x) for part in parts])


def _apply(n: Any, name: str, arguments: list[Any]) -> Any:
    if any(abs(u) > FARTHEST for u in arguments):
        raise _Unknown
    if name in (f.Log.text, f.Sqrt.text) and (arguments[0] < 0 or (arguments[0] == 0 and name == f.Log.text)):
        raise _Undefined
    function = _FUNCTIONS.get(name)
    return function(n, *arguments) if function else getattr(n, name)(*arguments)
