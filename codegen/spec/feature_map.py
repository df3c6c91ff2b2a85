"""Elementwise feature maps: text to sympy, its derivative, its canonical text, and the tree for lowering.

The text is data.  It is parsed with Python's `ast` and rebuilt node by node through a whitelist; nothing is
evaluated.
"""

from __future__ import annotations

import ast
import math
import warnings

import sympy
from sympy import Add, Expr, Integer, Mul, Pow, Rational, Symbol

from ..errors import ExpressionError, nearest_name
from . import slope, tree
from .functions import BINARY_FUNCTIONS, UNARY_FUNCTIONS, Sqrt
from .ordering import canonical_text
from .tree import Tree, tree_size

__all__ = ["Tree", "canonical_text", "derivative", "gradient", "parse", "to_tree"]

X = Symbol("x", real=True)

MAX_LENGTH = 200
MAX_NODES = 64
MAX_DEPTH = 16
MAX_LITERAL = 1e6
MAX_EXPONENT = 8
MAX_TREE = 1024
"""Nodes of the written-out map and of its derivative."""

CONSTANT_RANGE = (Rational(1, 10**30), Integer(10) ** 30)
"""Where the size of a non-zero constant must lie: float32 holds all of it."""

FUNCTIONS = (*UNARY_FUNCTIONS, *BINARY_FUNCTIONS)
OPERATORS = ("+", "-", "*", "/", "**")
_CHAINS: tuple[tuple[type[ast.operator], ...], ...] = ((ast.Add, ast.Sub), (ast.Mult, ast.Div))


def parse(expression: str) -> Expr:
    """The expression in x as a sympy expression.

    Raises ExpressionError, with the place of the fault, for anything outside the language or its bounds.
    """
    expr = _read(expression)
    text = canonical_text(expr)
    try:
        again = _read(text)
    except ExpressionError as error:
        raise ExpressionError(
            f"the expression simplifies to `{_shorten(text)}`, which is out of bounds: {error.message}"
        ) from error
    if again != expr:
        message = f"the expression has no stable form: `{text}` reads as `{canonical_text(again)}`"
        raise ExpressionError(message)
    _check_size(to_tree(expr), "the map")
    _check_size(gradient(expr), "its derivative")
    return expr


def derivative(expr: Expr) -> Expr:
    """dφ/dx.  At a kink it is what PyTorch's autograd gives: relu 0, abs 0, a tie of maximum half each."""
    return expr.diff(X)


def gradient(expr: Expr) -> Tree:
    """The gradient by x, where ("g",) is the one by the map's value."""
    return slope.gradient(derivative(expr))


def to_tree(expr: Expr) -> Tree:
    """The expression, or a derivative, as nested tuples."""
    return slope.gradient(expr, tree.ONE)


def _check_size(tree: Tree, what: str) -> None:
    size = tree_size(tree)
    if size > MAX_TREE:
        message = (
            f"the expression is too large: {what} takes {size} operations, at most {MAX_TREE} are allowed"
        )
        raise ExpressionError(message)


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _read(expression: str) -> Expr:
    if not expression.strip():
        raise ExpressionError("the expression is empty")
    if len(expression) > MAX_LENGTH:
        raise ExpressionError(
            f"the expression has {len(expression)} characters, at most {MAX_LENGTH} are allowed"
        )
    if not expression.isascii() or not expression.isprintable():
        offset = next(i for i, c in enumerate(expression) if not (c.isascii() and c.isprintable()))
        raise ExpressionError(
            f"the expression holds the character {expression[offset]!r}; only printable ASCII is allowed",
            offset,
        )
    margin = len(expression) - len(expression.lstrip())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(expression.strip(), mode="eval").body
    except SyntaxError as error:
        raise ExpressionError(
            f"the expression is not a formula: {error.msg}", margin + max((error.offset or 1) - 1, 0)
        ) from None
    except (ValueError, MemoryError, RecursionError):
        raise ExpressionError("the expression is not a formula") from None
    nodes = [node for node in ast.walk(body) if isinstance(node, ast.expr)]
    if len(nodes) > MAX_NODES:
        raise ExpressionError(
            f"the expression has {len(nodes)} terms and operations, at most {MAX_NODES} are allowed"
        )
    if _depth(body) > MAX_DEPTH:
        raise ExpressionError(f"the expression is nested {_depth(body)} deep, at most {MAX_DEPTH} is allowed")
    try:
        expr = _build(body)
    except ExpressionError as error:
        error.offset += margin
        raise
    if X not in expr.free_symbols:
        raise ExpressionError(
            f"the expression must depend on x, but is the constant {_shorten(canonical_text(expr))}"
        )
    return expr


def _depth(node: ast.expr) -> int:
    """Levels of nesting; a chain such as a + b - c is one level."""
    if isinstance(node, ast.BinOp):
        chain = next((ops for ops in _CHAINS if isinstance(node.op, ops)), ())
        left = _depth(node.left)
        continues = isinstance(node.left, ast.BinOp) and isinstance(node.left.op, chain)
        return max(left + (0 if continues else 1), _depth(node.right) + 1)
    children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    return 1 + max(map(_depth, children), default=0)


def _terms(node: ast.expr, sign: int) -> list[Expr]:
    """The terms of a chain of + and -."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        right = -sign if isinstance(node.op, ast.Sub) else sign
        return _terms(node.left, sign) + _terms(node.right, right)
    factors = _factors(node)
    return [_checked(Mul(*(factors if sign > 0 else [Integer(-1), *factors])), node)]


def _factors(node: ast.expr) -> list[Expr]:
    """The factors of a chain of * and /.  All go into one product: sympy multiplies nothing out half-way."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _factors(node.left) + _factors(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        divisor = _build(node.right)
        if divisor.is_zero:
            raise ExpressionError("divides by zero", node.right.col_offset)
        return [*_factors(node.left), _checked(Pow(divisor, -1), node.right)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return [Integer(-1), *_factors(node.operand)]
    return [_build(node)]


def _build(node: ast.expr) -> Expr:
    """One node of the syntax tree, and what is below it, in sympy."""
    match node:
        case ast.Name(id="x"):
            return X
        case ast.Name(id=name):
            if name in FUNCTIONS:
                raise ExpressionError(f"`{name}` is a function: write {name}(...)", node.col_offset)
            raise ExpressionError(f"unknown name `{name}`; the variable is x", node.col_offset)
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _literal(value, node)
        case ast.BinOp(op=ast.Add() | ast.Sub()):
            return _checked(Add(*_terms(node, 1)), node)
        case ast.BinOp(op=ast.Mult() | ast.Div()) | ast.UnaryOp(op=ast.USub()):
            return _checked(Mul(*_factors(node)), node)
        case ast.BinOp(op=ast.Pow(), left=left, right=right):
            return _checked(_power(_build(left), _build(right), right), node)
        case ast.Call():
            return _call(node)
    raise ExpressionError(*_unsupported(node))


def _literal(value: int | float, node: ast.expr) -> Expr:
    if not math.isfinite(value) or abs(value) > MAX_LITERAL:
        raise ExpressionError(f"numbers go up to {MAX_LITERAL:.0f}", node.col_offset)
    # By way of its shortest text, so that 0.1 is one tenth and not the nearest binary fraction.
    return _checked(Rational(repr(value)), node)


def _power(base: Expr, exponent: Expr, node: ast.expr) -> Expr:
    if abs(exponent) == Rational(1, 2):
        root = Sqrt(base)
        return root if exponent > 0 else 1 / root
    if not exponent.is_Integer or abs(exponent) > MAX_EXPONENT:
        raise ExpressionError(
            f"an exponent must be a whole number from -{MAX_EXPONENT} to {MAX_EXPONENT}, 0.5 or -0.5",
            node.col_offset,
        )
    if base.is_zero and exponent < 0:
        raise ExpressionError("divides by zero", node.col_offset)
    return Pow(base, exponent)


def _call(node: ast.Call) -> Expr:
    if not isinstance(node.func, ast.Name):
        message = "only the functions of the language can be called, by their bare names"
        raise ExpressionError(message, node.col_offset, FUNCTIONS)
    name = node.func.id
    if name not in FUNCTIONS:
        message = f"unknown function `{name}`"
        raise ExpressionError(message, node.col_offset, FUNCTIONS, nearest_name(name, FUNCTIONS))
    count = 2 if name in BINARY_FUNCTIONS else 1
    if node.keywords or len(node.args) != count:
        takes = "two arguments" if count == 2 else "one argument"
        raise ExpressionError(f"`{name}` takes {takes}, without names", node.col_offset)
    function = BINARY_FUNCTIONS[name] if count == 2 else UNARY_FUNCTIONS[name]
    return function(*map(_build, node.args))


def _unsupported(node: ast.expr) -> tuple[str, int, tuple[str, ...]]:
    """Message, offset and allowed values for a piece of Python that is not in the language."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
        return "`^` is not an operator; write ** for powers", node.col_offset, OPERATORS
    if isinstance(node, ast.BinOp):
        return "this operator is not allowed", node.col_offset, OPERATORS
    if isinstance(node, ast.UnaryOp):
        return "of the signs only - is allowed", node.col_offset, ()
    if isinstance(node, ast.Compare | ast.IfExp | ast.BoolOp):
        message = "comparisons and conditions are not allowed; relu, abs, minimum and maximum may serve"
        return message, node.col_offset, ()
    if isinstance(node, ast.Constant):
        return f"{node.value!r} is not a number", node.col_offset, ()
    return "only x, numbers, operators and functions are allowed", node.col_offset, (*OPERATORS, *FUNCTIONS)


def _checked(expr: Expr, node: ast.expr) -> Expr:
    """The expression, if its constants and exponents are within bounds; they must not grow on the way."""
    for part in sympy.preorder_traversal(expr):
        if part in (sympy.zoo, sympy.nan, sympy.oo, -sympy.oo):
            raise ExpressionError("divides by zero", node.col_offset)
        if part.is_Rational and part != 0 and not CONSTANT_RANGE[0] <= abs(part) <= CONSTANT_RANGE[1]:
            raise ExpressionError("a constant becomes too large or too small for float32", node.col_offset)
        if part.is_Pow and abs(part.exp) > MAX_EXPONENT:
            message = f"a power of `{_shorten(canonical_text(part.base))}` grows beyond {MAX_EXPONENT}"
            raise ExpressionError(message, node.col_offset)
    return expr
