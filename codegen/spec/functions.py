"""The functions of an elementwise expression, as sympy functions with the derivatives that autograd uses.

None of them rewrites itself.  An expression therefore keeps the shape its author gave it, apart from sympy's
own arithmetic on sums, products and whole powers, and real arguments never turn into complex branches.
"""

from __future__ import annotations

import sympy
from sympy import Expr, Function, Integer, Rational, default_sort_key


class Exp(Function):
    text = "exp"

    def fdiff(self, argindex: int = 1) -> Expr:
        return self


class Log(Function):
    text = "log"

    def fdiff(self, argindex: int = 1) -> Expr:
        return 1 / self.args[0]


class Log1p(Function):
    """log(1 + u), with the digits of a small u."""

    text = "log1p"

    def fdiff(self, argindex: int = 1) -> Expr:
        return 1 / (1 + self.args[0])


class Expm1(Function):
    """exp(u) - 1, likewise."""

    text = "expm1"

    def fdiff(self, argindex: int = 1) -> Expr:
        return Exp(self.args[0])


class Sqrt(Function):
    text = "sqrt"

    def fdiff(self, argindex: int = 1) -> Expr:
        return Rational(1, 2) / self


class Absolute(Function):
    text = "abs"

    def fdiff(self, argindex: int = 1) -> Expr:
        return Sign(self.args[0])


class Tanh(Function):
    text = "tanh"

    def fdiff(self, argindex: int = 1) -> Expr:
        return 1 - self**2


class Sigmoid(Function):
    text = "sigmoid"

    def fdiff(self, argindex: int = 1) -> Expr:
        # σ(-u) rather than 1 - σ(u), which loses every digit for large u.
        return self * Sigmoid(-self.args[0])


class Relu(Function):
    text = "relu"

    def fdiff(self, argindex: int = 1) -> Expr:
        return Step(self.args[0])


class Elu(Function):
    """u for u > 0, else exp(u) - 1."""

    text = "elu"

    def fdiff(self, argindex: int = 1) -> Expr:
        return Exp(Minimum(self.args[0], Integer(0)))


class Softplus(Function):
    """log(1 + exp(u))."""

    text = "softplus"

    def fdiff(self, argindex: int = 1) -> Expr:
        return Sigmoid(self.args[0])


class Silu(Function):
    """u·σ(u)."""

    text = "silu"

    def fdiff(self, argindex: int = 1) -> Expr:
        u = self.args[0]
        return Sigmoid(u) + u * Sigmoid(u) * Sigmoid(-u)


class Gelu(Function):
    """u·(1 + erf(u/√2))/2, the exact form."""

    text = "gelu"

    def fdiff(self, argindex: int = 1) -> Expr:
        u = self.args[0]
        density = Exp(-(u**2) / 2) / Sqrt(2 * sympy.pi)
        return Erfc(-u / Sqrt(Integer(2))) / 2 + u * density


class Sin(Function):
    text = "sin"

    def fdiff(self, argindex: int = 1) -> Expr:
        return Cos(self.args[0])


class Cos(Function):
    text = "cos"

    def fdiff(self, argindex: int = 1) -> Expr:
        return -Sin(self.args[0])


class Erf(Function):
    text = "erf"

    def fdiff(self, argindex: int = 1) -> Expr:
        return 2 * Exp(-(self.args[0] ** 2)) / Sqrt(sympy.pi)


class Erfc(Function):
    """1 - erf(u).  Only derivatives contain it."""

    text = "erfc"


class Minimum(Function):
    """The smaller of two; the gradient of a tie is shared equally."""

    text = "minimum"

    @classmethod
    def eval(cls, a: Expr, b: Expr) -> Expr | None:
        return _symmetric(cls, a, b)

    def fdiff(self, argindex: int = 1) -> Expr:
        mine, other = self.args if argindex == 1 else reversed(self.args)
        return Ahead(other, mine)


class Maximum(Function):
    """The larger of two; the gradient of a tie is shared equally."""

    text = "maximum"

    @classmethod
    def eval(cls, a: Expr, b: Expr) -> Expr | None:
        return _symmetric(cls, a, b)

    def fdiff(self, argindex: int = 1) -> Expr:
        mine, other = self.args if argindex == 1 else reversed(self.args)
        return Ahead(mine, other)


class Step(Function):
    """1 for u > 0, else 0.  Only derivatives contain it."""

    text = "step"


class Ahead(Function):
    """1 for a > b, 1/2 for a = b, else 0.  Only derivatives contain it."""

    text = "ahead"


class Sign(Function):
    """1, 0 or -1.  Only derivatives contain it."""

    text = "sign"


SELECTORS = (Step, Ahead)
"""Factors of a derivative that choose: where one is 0 the product is, be the other factors infinite.  So does
autograd, which masks a gradient and never multiplies it by 0."""


def _symmetric(cls: type[Function], a: Expr, b: Expr) -> Expr | None:
    """Another form of ``cls(a, b)``, or None to keep it: one order of arguments, and no pair of equals."""
    if a == b:
        return a
    return cls(b, a) if default_sort_key(b) < default_sort_key(a) else None


UNARY_FUNCTIONS: dict[str, type[Function]] = {
    cls.text: cls
    for cls in (
        Exp,
        Expm1,
        Log,
        Log1p,
        Sqrt,
        Absolute,
        Tanh,
        Sigmoid,
        Relu,
        Elu,
        Softplus,
        Silu,
        Gelu,
        Sin,
        Cos,
        Erf,
    )
}
BINARY_FUNCTIONS: dict[str, type[Function]] = {cls.text: cls for cls in (Minimum, Maximum)}
