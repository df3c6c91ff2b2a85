"""One fixed order for the parts of sums and products, and the text of an expression in that order."""

from __future__ import annotations

from functools import lru_cache

from sympy import Add, Expr, Mul, Rational

_MAX_DECIMALS = 12


def _degree(expr: Expr) -> int:
    """The power of x when the term is a plain power of x, else 0."""
    rest = expr.as_coeff_Mul()[1]
    base, exponent = rest.as_base_exp()
    return int(exponent) if base.is_Symbol else 0


def ordered_terms(expr: Expr) -> list[Expr]:
    """The terms of a sum: powers of x from the highest, then the rest by their text, then constants.

    A sum that would start with a minus starts with its first positive term instead, if it has one.
    """
    terms = sorted(Add.make_args(expr), key=lambda t: (not t.free_symbols, -_degree(t), canonical_text(t)))
    first = next((i for i, term in enumerate(terms) if not _is_negative(term)), 0)
    return [terms[first], *terms[:first], *terms[first + 1 :]]


def ordered_factors(expr: Expr) -> tuple[Rational, list[Expr], list[Expr]]:
    """The coefficient of a product, the factors above the line, and those below it, with positive powers."""
    coefficient, rest = expr.as_coeff_Mul()
    above, below = [], []
    for factor in Mul.make_args(rest):
        base, exponent = factor.as_base_exp()
        if exponent.is_negative:
            below.append(base**-exponent)
        elif factor != 1:
            above.append(factor)

    def key(factor: Expr) -> tuple[bool, bool, str]:
        return bool(factor.free_symbols), not factor.as_base_exp()[0].is_Symbol, canonical_text(factor)

    return coefficient, sorted(above, key=key), sorted(below, key=key)


def _is_negative(expr: Expr) -> bool:
    return bool(expr.as_coeff_Mul()[0].is_negative)


def _decimal(value: Rational) -> str | None:
    """A positive rational as a plain decimal, or None when that does not end soon."""
    for digits in range(_MAX_DECIMALS + 1):
        scaled = value * 10**digits
        if scaled.is_Integer:
            whole = str(int(scaled)).rjust(digits + 1, "0")
            return f"{whole[:-digits]}.{whole[-digits:]}" if digits else whole
    return None


def _rational(value: Rational) -> str:
    text = _decimal(abs(value)) or f"{abs(value.p)}/{value.q}"
    return f"-{text}" if value.is_negative else text


def _factor(expr: Expr) -> str:
    text = canonical_text(expr)
    return f"({text})" if expr.is_Add else text


def _product(expr: Expr) -> str:
    coefficient, above, below = ordered_factors(expr)
    size = abs(coefficient)
    parts = [_factor(factor) for factor in above]
    divisors = [_factor(factor) for factor in below]
    if size != 1 or not parts:
        decimal = _decimal(size)
        if decimal is None and size.p != 1 or not parts:
            parts.insert(0, decimal or str(size.p))
        elif decimal is not None:
            parts.insert(0, decimal)
        if decimal is None:
            divisors.insert(0, str(size.q))
    # One division at a time: the factors of a product in parentheses would be multiplied out when read again.
    return ("-" if coefficient.is_negative else "") + "/".join(["*".join(parts), *divisors])


# Ordering asks for the text of every part at every level: without a cache that is exponential in the depth.
@lru_cache(maxsize=4096)
def canonical_text(expr: Expr) -> str:
    """The expression as text in one fixed form; reading it gives an equal expression."""
    if expr.is_Symbol or expr.is_NumberSymbol:
        return str(expr)
    if expr.is_Rational:
        return _rational(expr)
    if expr.is_Add:
        first, *rest = ordered_terms(expr)
        text = canonical_text(first)
        for term in rest:
            text += f" - {canonical_text(-term)}" if _is_negative(term) else f" + {canonical_text(term)}"
        return text
    if expr.is_Mul or (expr.is_Pow and expr.exp.is_negative):
        return _product(expr)
    if expr.is_Pow:
        return f"{_factor(expr.base)}**{expr.exp}"
    return f"{expr.text}({', '.join(map(canonical_text, expr.args))})"
