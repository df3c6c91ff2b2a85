"""What a user can mistype in a spec, and the exact answer."""
# ruff: noqa: E501

from __future__ import annotations

import re
from pathlib import Path

import pytest

from based_ops.codegen.errors import SpecErrors
from based_ops.codegen.mixers import mixers
from based_ops.codegen.spec.fields import spec_fields
from based_ops.codegen.spec.load import load_dir, load_file

TAYLOR = """\
name: bad
mixer: linear_attention
feature_map: {kind: taylor_exp, order: 2}
head_dims: {qk: 16, v: 64}
"""
SLIDING = """\
name: bad
mixer: sliding_window
window: 64
head_dims: {qk: 64, v: 64}
"""


def elementwise(expression: str) -> str:
    return f"""\
name: bad
mixer: linear_attention
feature_map:
  kind: elementwise
  expression: {expression}
head_dims: {{qk: 16, v: 64}}
"""


LINEAR = (
    "name, mixer, feature_map, head_dims, parts, key_parts, tied, normalize, signed_weights, eps, scale, "
    "decay, update, unit_keys, replay, state_dtype, dtypes"
)
WINDOW = "name, mixer, window, head_dims, scale, dtypes"
HYBRID = """name: bad
mixer: hybrid
window: 8
feature_map: {{kind: elementwise, expression: {}}}
head_dims: {{qk: 16, v: 64}}
"""
DTYPES = "bfloat16, float16, float32"
FUNCTIONS = "exp, expm1, log, log1p, sqrt, abs, tanh, sigmoid, relu, elu, softplus, silu, gelu, sin, cos, erf, minimum, maximum"


def with_parts(*parts: str, feature_map: str = "{kind: elementwise, expression: x}", more: str = "") -> str:
    listed = "".join(f"  - {part}\n" for part in parts)
    return f"""\
name: bad
mixer: linear_attention
feature_map: {feature_map}
head_dims: {{qk: 16, v: 64}}
{more}normalize: false
parts:
{listed}"""


KINDS = "projection, random_projection, affine, elementwise, softmax, l2_norm, layer_norm, signs, products, rolled_products, positions"
REMEDY = "choose a map of one sign, such as elu(x) + 1, or `normalize: false`, or accept it: `signed_weights: true`"


def signed(shown: str) -> str:
    return f"`feature_map.expression`: `normalize` divides by sums of φ(q)·φ(k), but {shown}; {REMEDY}"


def divides(field: str, by: str) -> str:
    return f"`feature_map.{field}`: `normalize` divides by sums of {by}; {REMEDY}"


BAD_SPECS = [
    ("empty file", "", ["1:1: the file is empty; a spec is a mapping with at least `name` and `mixer`"]),
    (
        "only a comment",
        "# hi\n",
        ["1:1: the file is empty; a spec is a mapping with at least `name` and `mixer`"],
    ),
    (
        "a list at the top",
        "- name: bad\n",
        ["1:1: a spec is a mapping with at least `name` and `mixer`, not a list"],
    ),
    (
        "a word at the top",
        "hello\n",
        ["1:1: a spec is a mapping with at least `name` and `mixer`, not hello"],
    ),
    (
        "feature_map misspelt",
        TAYLOR.replace(
            "feature_map: {kind: taylor_exp, order: 2}", "featuremap: {kind: taylor_exp, order: 2}"
        ),
        [f"3:1: unknown field `featuremap` (allowed: {LINEAR}; did you mean `feature_map`?)"],
    ),
    (
        "kind with a hyphen",
        TAYLOR.replace(
            "feature_map: {kind: taylor_exp, order: 2}", "feature_map: {kind: taylor-exp, order: 2}"
        ),
        [
            "3:21: `feature_map.kind` cannot be taylor-exp (allowed: taylor_exp, power, elementwise; did you mean `taylor_exp`?)"
        ],
    ),
    (
        "feature map as a word",
        TAYLOR.replace("feature_map: {kind: taylor_exp, order: 2}", "feature_map: taylor_exp"),
        [
            "3:14: `feature_map` must be a mapping with a `kind`, not taylor_exp (allowed: taylor_exp, power, elementwise; did you mean `{kind: taylor_exp}`?)"
        ],
    ),
    (
        "order 4",
        TAYLOR.replace(
            "feature_map: {kind: taylor_exp, order: 2}", "feature_map: {kind: taylor_exp, order: 4}"
        ),
        ["3:40: `feature_map.order` must be a whole number from 1 to 3, not 4"],
    ),
    (
        "degree 1",
        TAYLOR.replace("{kind: taylor_exp, order: 2}", "{kind: power, degree: 1}"),
        ["3:36: `feature_map.degree` must be a whole number from 2 to 4, not 1"],
    ),
    (
        "a power with an order",
        TAYLOR.replace("{kind: taylor_exp, order: 2}", "{kind: power, order: 2}"),
        [
            "3:14: `feature_map.degree` is missing: the power to which q·k is raised",
            "3:28: unknown field `feature_map.order` (allowed: kind, degree)",
        ],
    ),
    (
        "the third order of both signs",
        TAYLOR.replace("order: 2", "order: 3"),
        [
            f"3:40: {divides('order', 'a third order of exp(scale·q·k), which is negative where scale·q·k < -1.6')}"
        ],
    ),
    (
        "an odd power",
        TAYLOR.replace("{kind: taylor_exp, order: 2}", "{kind: power, degree: 3}"),
        [f"3:36: {divides('degree', 'an odd power of scale·q·k, which is negative where that is')}"],
    ),
    (
        "the third order of wide queries",
        TAYLOR.replace("order: 2", "order: 3").replace("qk: 16", "qk: 22") + "normalize: false\n",
        [
            "4:17: `head_dims.qk`: must be at most 21 for this map, whose state would have 2300 rows",
        ],
    ),
    (
        "a fourth power of wide queries",
        TAYLOR.replace("{kind: taylor_exp, order: 2}", "{kind: power, degree: 4}"),
        [
            "4:17: `head_dims.qk`: must be at most 13 for this map, whose state would have 3876 rows",
        ],
    ),
    (
        "qk 4",
        TAYLOR.replace("head_dims: {qk: 16, v: 64}", "head_dims: {qk: 4, v: 64}"),
        ["4:17: `head_dims.qk` must be a whole number from 8 to 256, not 4"],
    ),
    (
        "a Taylor map of wide queries",
        TAYLOR.replace("qk: 16", "qk: 65"),
        [
            "4:17: `head_dims.qk`: must be at most 64 for this map, whose state would have 2211 rows",
        ],
    ),
    (
        "window on linear attention",
        TAYLOR + "window: 64\n",
        [
            f"5:1: `window` is a field of hybrid and sliding_window, not of linear_attention (allowed: {LINEAR})"
        ],
    ),
    (
        "dtype bf16",
        TAYLOR + "dtypes: [bf16]\n",
        [f"5:10: `dtypes` cannot be bf16 (allowed: {DTYPES}; did you mean `bfloat16`?)"],
    ),
    ("negative eps", TAYLOR + "eps: -1\n", ["5:6: `eps` must be a number from 0 to 1, not -1"]),
    (
        "eps 1e-6",
        TAYLOR + "eps: 1e-6\n",
        [
            "5:6: `eps`: YAML 1.1 reads 1e-6 as text; its numbers need a point and a signed exponent (did you mean `1.0e-6`?)"
        ],
    ),
    ("eps not a number", TAYLOR + "eps: .nan\n", ["5:6: `eps` must be a number from 0 to 1, not .nan"]),
    ("eps a word", TAYLOR + "eps: small\n", ["5:6: `eps` must be a number from 0 to 1, not small"]),
    (
        "hyphen in the name",
        TAYLOR.replace("name: bad", "name: my-layer"),
        [
            "1:7: the name `my-layer` must be lower-case ASCII letters, digits and underscores, starting with a letter (did you mean `my_layer`?)"
        ],
    ),
    (
        "capital in the name",
        TAYLOR.replace("name: bad", "name: Bad"),
        [
            "1:7: the name `Bad` must be lower-case ASCII letters, digits and underscores, starting with a letter (did you mean `bad`?)"
        ],
    ),
    (
        "keyword as the name",
        TAYLOR.replace("name: bad", "name: class"),
        ["1:7: the name `class` is a Python keyword"],
    ),
    (
        "tab",
        TAYLOR.replace("{kind: taylor_exp, order: 2}", "\n\tkind: taylor_exp"),
        ["4:1: a tab; YAML is indented with spaces"],
    ),
    (
        "normalize yes",
        TAYLOR + "normalize: yes\n",
        [
            "5:12: `normalize` must be true or false, not yes, which YAML 1.1 reads as true (allowed: true, false; did you mean `true`?)"
        ],
    ),
    (
        "normalize True",
        TAYLOR + "normalize: True\n",
        ["5:12: `normalize` must be true or false, not True (allowed: true, false; did you mean `true`?)"],
    ),
    (
        "normalize 1",
        TAYLOR + "normalize: 1\n",
        ["5:12: `normalize` must be true or false, not 1 (allowed: true, false)"],
    ),
    (
        "name yes",
        TAYLOR.replace("name: bad", "name: yes"),
        ["1:7: `name` must be text, not yes, which YAML 1.1 reads as true; quote it"],
    ),
    (
        "name a number",
        TAYLOR.replace("name: bad", "name: 12"),
        ["1:7: `name` must be text, not 12; quote it"],
    ),
    (
        "name of another file",
        TAYLOR.replace("name: bad", "name: other"),
        ["1:7: the name `other` differs from the name of the file, `bad.yaml`"],
    ),
    (
        "key given twice",
        TAYLOR + "head_dims: {qk: 16, v: 64}\n",
        ["5:1: `head_dims` is given twice, first in line 4"],
    ),
    (
        "inner key given twice",
        TAYLOR.replace("head_dims: {qk: 16, v: 64}", "head_dims: {qk: 16, qk: 16, v: 64}"),
        ["4:21: `head_dims.qk` is given twice, first in line 4"],
    ),
    (
        "mixer with a hyphen",
        TAYLOR.replace("mixer: linear_attention", "mixer: linear-attention"),
        ["2:8: `mixer` cannot be linear-attention (allowed: <mixers>; did you mean `linear_attention`?)"],
    ),
    (
        "unknown mixer",
        TAYLOR.replace("mixer: linear_attention", "mixer: mamba"),
        ["2:8: `mixer` cannot be mamba (allowed: <mixers>)"],
    ),
    (
        "no mixer",
        TAYLOR.replace("mixer: linear_attention\n", ""),
        ["1:1: `mixer` is missing (allowed: <mixers>)"],
    ),
    (
        "mixer misspelt",
        TAYLOR.replace("mixer: linear_attention", "mixr: linear_attention"),
        ["2:1: unknown field `mixr` (allowed: <fields>; did you mean `mixer`?)"],
    ),
    (
        "order at the top",
        TAYLOR + "order: 2\n",
        [f"5:1: `order` belongs under `feature_map` (allowed: {LINEAR}; did you mean `feature_map.order`?)"],
    ),
    (
        "qk at the top",
        TAYLOR + "qk: 2\n",
        [f"5:1: `qk` belongs under `head_dims` (allowed: {LINEAR}; did you mean `head_dims.qk`?)"],
    ),
    (
        "no head_dims",
        TAYLOR.replace("head_dims: {qk: 16, v: 64}\n", ""),
        ["1:1: `head_dims` is missing: widths of one head"],
    ),
    (
        "no v",
        TAYLOR.replace("head_dims: {qk: 16, v: 64}", "head_dims: {qk: 16}"),
        ["4:12: `head_dims.v` is missing: width of a value"],
    ),
    (
        "head_dims a list",
        TAYLOR.replace("head_dims: {qk: 16, v: 64}", "head_dims: [16, 64]"),
        ["4:12: `head_dims` must be a mapping {qk: ..., v: ...}, not a list"],
    ),
    ("anchor", TAYLOR + "scale: &a 1.0\n", ["5:8: anchors (&) and aliases (*) are not allowed"]),
    ("alias", TAYLOR + "scale: *a\n", ["5:8: anchors (&) and aliases (*) are not allowed"]),
    (
        "a Python tag",
        TAYLOR + "scale: !!python/object/apply:os.system [ls]\n",
        ["5:8: tags such as tag:yaml.org,2002:python/object/apply:os.system are not allowed"],
    ),
    ("a local tag", TAYLOR + "scale: !foo 1\n", ["5:8: tags such as !foo are not allowed"]),
    ("two documents", TAYLOR + "---\nname: b\n", ["5:1: a second document; a file holds one spec"]),
    ("deep nesting", "a: " + "[" * 50 + "]" * 50, ["1:12: nested deeper than 8 levels"]),
    (
        "wrong indentation",
        "name: bad\n  mixer: x\n",
        [
            "2:8: not YAML: a `:` where no key can stand; check the indentation, and quote text that holds `: `"
        ],
    ),
    ("NUL", TAYLOR + "scale: \u0000\n", ["5:8: the character '\\x00' is not allowed"]),
    ("not UTF-8", TAYLOR.encode() + b"scale: \xff\n", ["5:8: the file is not UTF-8 text"]),
    (
        "a number in quotes",
        TAYLOR.replace("head_dims: {qk: 16, v: 64}", 'head_dims: {qk: "16", v: 64}'),
        ["4:17: `head_dims.qk` must be a whole number from 8 to 256, not the text '16'"],
    ),
    (
        "window 64.0",
        SLIDING.replace("window: 64", "window: 64.0"),
        ["3:9: `window` must be a whole number from 1 to 4096, not 64.0"],
    ),
    (
        "window 010",
        SLIDING.replace("window: 64", "window: 010"),
        ["3:9: `window` must be a whole number from 1 to 4096, not 010"],
    ),
    (
        "window 0",
        SLIDING.replace("window: 64", "window: 0"),
        ["3:9: `window` must be a whole number from 1 to 4096, not 0"],
    ),
    (
        "window 5000",
        SLIDING.replace("window: 64", "window: 5000"),
        ["3:9: `window` must be a whole number from 1 to 4096, not 5000"],
    ),
    (
        "window 1:30",
        SLIDING.replace("window: 64", "window: 1:30"),
        ["3:9: `window` must be a whole number from 1 to 4096, not 1:30"],
    ),
    (
        "scale 0",
        SLIDING + "scale: 0\n",
        ["5:8: `scale` must be a number above 0 and up to 1000000, or null, not 0"],
    ),
    (
        "dtypes a word",
        SLIDING + "dtypes: bfloat16\n",
        [f"5:9: `dtypes` must be a list, such as [bfloat16, float16], not bfloat16 (allowed: {DTYPES})"],
    ),
    ("no dtypes", SLIDING + "dtypes: []\n", [f"5:9: `dtypes` must name at least one (allowed: {DTYPES})"]),
    ("a dtype twice", SLIDING + "dtypes: [float32, float32]\n", ["5:19: `dtypes` lists float32 twice"]),
    (
        "dtype float64",
        SLIDING + "dtypes: [float64]\n",
        [f"5:10: `dtypes` cannot be float64 (allowed: {DTYPES}; did you mean `float32`?)"],
    ),
    (
        "feature map on a window",
        SLIDING + "feature_map: {kind: taylor_exp, order: 1}\n",
        [
            f"5:1: `feature_map` is a field of hybrid and linear_attention, not of sliding_window (allowed: {WINDOW})"
        ],
    ),
    ("a tile size", SLIDING + "chunk: 64\n", [f"5:1: unknown field `chunk` (allowed: {WINDOW})"]),
    (
        "state_dtype fp32",
        TAYLOR + "state_dtype: fp32\n",
        ["5:14: `state_dtype` cannot be fp32 (allowed: float32, bfloat16, float16; did you mean `float32`?)"],
    ),
    ("a list as a key", TAYLOR + "? [a]\n: 1\n", ["5:3: a key must be a word, not a list"]),
    (
        "several faults",
        TAYLOR.replace("order: 2", "order: 4").replace("qk: 16", "qk: 4")
        + "eps: -1\ndtypes: [bf16]\nfoo: 1\n",
        [
            "3:40: `feature_map.order` must be a whole number from 1 to 3, not 4",
            "4:17: `head_dims.qk` must be a whole number from 8 to 256, not 4",
            "5:6: `eps` must be a number from 0 to 1, not -1",
            f"6:10: `dtypes` cannot be bf16 (allowed: {DTYPES}; did you mean `bfloat16`?)",
            f"7:1: unknown field `foo` (allowed: {LINEAR})",
        ],
    ),
    (
        "unknown variable",
        elementwise("elu(y) + 1"),
        ["5:19: `feature_map.expression`: unknown name `y`; the variable is x"],
    ),
    (
        "unknown function",
        elementwise("max(x, 0)"),
        [
            f"5:15: `feature_map.expression`: unknown function `max` (allowed: {FUNCTIONS}; did you mean `maximum`?)"
        ],
    ),
    (
        "caret",
        elementwise("x^2"),
        [
            "5:15: `feature_map.expression`: `^` is not an operator; write ** for powers (allowed: +, -, *, /, **)"
        ],
    ),
    (
        "expression a number",
        elementwise("1.0"),
        ["5:15: `feature_map.expression` must be an expression in x, such as elu(x) + 1, not 1.0"],
    ),
    (
        "a call of Python",
        elementwise("__import__('os').system('ls')"),
        [
            f"5:15: `feature_map.expression`: only the functions of the language can be called, by their bare names (allowed: {FUNCTIONS})"
        ],
    ),
    (
        "unfinished expression",
        elementwise("'x +'"),
        ["5:15: `feature_map.expression`: the expression is not a formula: invalid syntax"],
    ),
    (
        "attribute",
        elementwise("x.real"),
        [
            f"5:15: `feature_map.expression`: only x, numbers, operators and functions are allowed (allowed: +, -, *, /, **, {FUNCTIONS})"
        ],
    ),
    (
        "expression a list",
        elementwise("[x]"),
        ["5:15: `feature_map.expression` must be an expression in x, such as elu(x) + 1, not a list"],
    ),
    (
        "long expression",
        elementwise("x + " * 60 + "x"),
        ["5:15: `feature_map.expression`: the expression has 241 characters, at most 200 are allowed"],
    ),
    (
        "large exponent",
        elementwise("x**9"),
        ["5:18: `feature_map.expression`: an exponent must be a whole number from -8 to 8, 0.5 or -0.5"],
    ),
    (
        "comparison",
        elementwise("x > 0"),
        [
            "5:15: `feature_map.expression`: comparisons and conditions are not allowed; relu, abs, minimum and maximum may serve"
        ],
    ),
    ("large number", elementwise("1e7*x"), ["5:15: `feature_map.expression`: numbers go up to 1000000"]),
    (
        "open bracket",
        elementwise("sin(x"),
        ["5:18: `feature_map.expression`: the expression is not a formula: '(' was never closed"],
    ),
    (
        "kind misspelt",
        elementwise("x").replace("elementwise", "elementwize"),
        [
            "4:9: `feature_map.kind` cannot be elementwize (allowed: taylor_exp, power, elementwise; did you mean `elementwise`?)"
        ],
    ),
    (
        "order of an elementwise map",
        elementwise("x").replace("expression: x", "order: 1"),
        [
            "4:3: `feature_map.expression` is missing: the map φ as an expression in x, such as elu(x) + 1",
            "5:3: unknown field `feature_map.order` (allowed: kind, expression)",
        ],
    ),
    ("a map of both signs", elementwise("x"), [f"5:15: {signed('φ(-1) = -1 and φ(1) = 1')}"]),
    ("a cube", elementwise("x**3"), [f"5:15: {signed('φ(-1) = -1 and φ(1) = 1')}"]),
    (
        "a map that dips below zero",
        elementwise("(x - 1.2345)**2 - 1e-6"),
        [f"5:15: {signed('φ(0) = 1.52399 and φ(1.2345) = -1e-06')}"],
    ),
    ("a logarithm", elementwise("log(x)"), [f"5:15: {signed('φ(0) is undefined')}"]),
    ("a root", elementwise("sqrt(x + 3) + 1"), [f"5:15: {signed('φ(-4) is undefined')}"]),
    ("a pole", elementwise("x**-2"), [f"5:15: {signed('φ(0) is undefined')}"]),
    (
        "signed and other faults",
        elementwise("x") + "eps: 2\n",
        [f"5:15: {signed('φ(-1) = -1 and φ(1) = 1')}", "7:6: `eps` must be a number from 0 to 1, not 2"],
    ),
    (
        "order 1 with a normaliser",
        TAYLOR.replace("order: 2", "order: 1"),
        [
            "3:40: `feature_map.order`: `normalize` divides by sums of 1 + scale·q·k, which is negative where "
            f"scale·q·k < -1; {REMEDY}"
        ],
    ),
    (
        "a hybrid whose sums of weights can vanish",
        HYBRID.format("x"),
        [
            "4:46: `feature_map.expression`: a hybrid divides by sums of φ(q)·φ(k), but φ(-1) = -1 and φ(1) = 1; "
            "choose a map of one sign, such as elu(x) + 1"
        ],
    ),
    (
        "fields of a hybrid",
        HYBRID.format("exp(x)") + "window_dims: 16\ncombine: normaliser\nwindow_factor: 2\n",
        [
            "6:14: `window_dims` must be a mapping {qk: ...}, or null, not 16",
            "7:10: `combine` cannot be normaliser (allowed: normalizer, sum; did you mean `normalizer`?)",
            "8:16: `window_factor` must be true or false, not 2 (allowed: true, false)",
        ],
    ),
    (
        "parts with normalisers of their own that share a rescaling",
        HYBRID.format("exp(x)") + "combine: sum\nrescale: window\n",
        [
            "7:10: `rescale`: a window that is added has a normaliser of its own, which no rescaling changes; "
            "choose combine: normalizer, or leave rescale out"
        ],
    ),
    (
        "widths of a window that has its own",
        HYBRID.format("exp(x)") + "window_dims: {qk: 4, v: 16}\n",
        [
            "6:19: `window_dims.qk` must be a whole number from 8 to 128, not 4",
            "6:22: unknown field `window_dims.v` (allowed: qk)",
        ],
    ),
    (
        "mixer and others misspelt",
        "name: Bad\nmixer: linear-attention\nfeature_map: {kind: taylor_ex, order: 4}\n"
        "head_dims: {qk: 300, w: 64}\ndtype: [float32]\nwindow: 3\n",
        [
            "1:7: the name `Bad` must be lower-case ASCII letters, digits and underscores, starting with a letter (did you mean `bad`?)",
            "2:8: `mixer` cannot be linear-attention (allowed: <mixers>; did you mean `linear_attention`?)",
            "3:21: `feature_map.kind` cannot be taylor_ex (allowed: taylor_exp, power, elementwise; did you mean `taylor_exp`?)",
            "3:39: `feature_map.order` must be a whole number from 1 to 3, not 4",
            "4:12: `head_dims.v` is missing: width of a value",
            "4:17: `head_dims.qk` must be a whole number from 8 to 256, not 300",
            "4:22: unknown field `head_dims.w` (allowed: qk, v)",
            f"5:1: unknown field `dtype` (allowed: {LINEAR}; did you mean `dtypes`?)",
            f"6:1: `window` is a field of hybrid and sliding_window, not of linear_attention (allowed: {LINEAR})",
        ],
    ),
    (
        "an unknown mixer with the fields of a window",
        SLIDING.replace("sliding_window", "softmax_attention").replace("window: 64", "window: 0"),
        [
            "2:8: `mixer` cannot be softmax_attention (allowed: <mixers>)",
            "3:9: `window` must be a whole number from 1 to 4096, not 0",
        ],
    ),
    (
        "an unknown mixer without fields of its own",
        "name: bad\nmixer: mamba\nscale: 0\ndtypes: [bf16]\nchunk: 3\n",
        [
            "1:1: `head_dims` is missing: widths of one head",
            "2:8: `mixer` cannot be mamba (allowed: <mixers>)",
            "3:8: `scale` must be a number above 0 and up to 1000000, or null, not 0",
            f"4:10: `dtypes` cannot be bf16 (allowed: {DTYPES}; did you mean `bfloat16`?)",
            "5:1: unknown field `chunk` (allowed: <fields>)",
        ],
    ),
    (
        "a key misspelt beside other faults",
        TAYLOR.replace("mixer:", "mixr:").replace("order: 2", "order: 4").replace("v: 64", "v: 0"),
        [
            "2:1: unknown field `mixr` (allowed: <fields>; did you mean `mixer`?)",
            "3:40: `feature_map.order` must be a whole number from 1 to 3, not 4",
            "4:24: `head_dims.v` must be a whole number from 16 to 256, not 0",
        ],
    ),
    (
        "kind unknown beside other faults",
        TAYLOR.replace("kind: taylor_exp, order: 2", "kind: rbf, order: 7, width: 2"),
        [
            "3:21: `feature_map.kind` cannot be rbf (allowed: taylor_exp, power, elementwise)",
            "3:33: `feature_map.order` must be a whole number from 1 to 3, not 7",
            "3:36: unknown field `feature_map.width` (allowed: kind, order, degree, expression)",
        ],
    ),
    (
        "kind left out",
        elementwise("reul(x)").replace("  kind: elementwise\n", ""),
        [
            "4:3: `feature_map.kind` is missing (allowed: taylor_exp, power, elementwise)",
            f"4:15: `feature_map.expression`: unknown function `reul` (allowed: {FUNCTIONS}; did you mean `relu`?)",
        ],
    ),
    (
        "parts that are no list",
        with_parts().replace("parts:\n", "parts: softmax\n"),
        ["6:8: `parts` must be a list, not softmax"],
    ),
    (
        "a part without a kind",
        with_parts("softmax"),
        [
            f"7:5: `parts[0]` must be a mapping with a `kind`, not softmax (allowed: {KINDS}, branches; did you mean `{{kind: softmax}}`?)"
        ],
    ),
    (
        "an unknown part",
        with_parts("{kind: softmux}", "{kind: signs}"),
        [f"7:12: `parts[0].kind` cannot be softmux (allowed: {KINDS}, branches; did you mean `softmax`?)"],
    ),
    (
        "a bad field of a part",
        with_parts("{kind: signs}", "{kind: projection, features: 4, biass: true}"),
        [
            "8:34: `parts[1].features` must be a whole number from 8 to 256, not 4",
            "8:37: unknown field `parts[1].biass` (allowed: kind, features, bias, start; did you mean `bias`?)",
        ],
    ),
    (
        "an identity of another width",
        with_parts("{kind: projection, features: 32, start: identity}"),
        ["7:5: `parts[0]`: an identity needs as many features after it as before it, 16; or `start: normal`"],
    ),
    (
        "groups that do not divide",
        with_parts("{kind: softmax, groups: 3}"),
        ["7:5: `parts[0]`: 3 groups do not divide 16 features"],
    ),
    (
        "too many features",
        with_parts("{kind: rolled_products, rolls: 8}", "{kind: signs}", "{kind: signs}"),
        ["9:5: `parts[2]`: gives 512 features, at most 256 are allowed"],
    ),
    (
        "branches of several widths",
        with_parts("{kind: branches, join: add, of: [[], [{kind: signs}]]}"),
        ["7:5: `parts[0]`: branches of 16 and 32 features cannot be joined so"],
    ),
    (
        "one branch",
        with_parts("{kind: branches, join: add, of: [[]]}"),
        ["7:37: `parts[0].of` must list from 2 to 8, not 1"],
    ),
    (
        "branches in branches",
        with_parts("{kind: branches, join: add, of: [[], [{kind: branches}]]}"),
        [f"7:50: `parts[0].of[1][0].kind` cannot be branches (allowed: {KINDS})"],
    ),
    (
        "features too many for the map",
        with_parts("{kind: projection, features: 128}", feature_map="{kind: taylor_exp, order: 2}"),
        ["7:3: `parts`: gives 128 features, must be from 8 to 64"],
    ),
    (
        "keys of other features",
        with_parts("{kind: signs}", more="key_parts: [{kind: softmax}]\n"),
        ["5:12: `key_parts`: gives 16 features, those of queries are 32"],
    ),
    (
        "tied parameters of other parts",
        with_parts("{kind: affine}", more="tied: true\nkey_parts: [{kind: softmax}]\n"),
        ["5:7: `tied`: parameters can be shared where queries and keys have the same parts"],
    ),
    (
        "positions in the middle",
        with_parts("{kind: positions, period: 9}", "{kind: softmax}"),
        ["7:5: `parts[0]`: positions are the last part"],
    ),
    (
        "positions under a map",
        with_parts("{kind: positions, period: 9}", feature_map="{kind: elementwise, expression: x**2}"),
        [
            "7:3: `parts`: positions turn the features themselves: `feature_map: {kind: elementwise, expression: x}`"
        ],
    ),
    (
        "positions in a narrow state",
        with_parts("{kind: positions, period: 9}", more="state_dtype: bfloat16\n"),
        ["5:14: `state_dtype`: positions turn the state with every token: float32 only"],
    ),
    (
        "positions of queries alone",
        with_parts("{kind: positions, period: 9}", more="key_parts: [{kind: signs}]\n"),
        ["5:12: `key_parts`: positions of keys must be those of queries"],
    ),
    (
        "positions of a hybrid",
        HYBRID.format("x")
        + "parts:\n  - {kind: elementwise, expression: relu(x)}\n  - {kind: positions, period: 9}\n",
        [
            "4:46: `feature_map.expression`: a hybrid divides by sums of φ(q)·φ(k), but φ(-1) = -1 and φ(1) = 1; choose a map of one sign, such as elu(x) + 1",
            "7:3: `parts`: a hybrid's state cannot turn with positions",
        ],
    ),
    (
        "features of both signs under a normaliser",
        with_parts("{kind: layer_norm}").replace("normalize: false", "normalize: true"),
        [f"3:46: {signed('φ(-1) = -1 and φ(1) = 1')}"],
    ),
    (
        "a normaliser of the delta rule",
        TAYLOR + "update: delta\nunit_keys: true\n",
        ["5:9: `update`: the delta rule has no sum of weights to divide by: `normalize: false`"],
    ),
    (
        "a normaliser of the delta rule as asked for",
        TAYLOR + "normalize: true\nupdate: delta\nunit_keys: true\n",
        ["5:12: `normalize`: the delta rule has no sum of weights to divide by: `normalize: false`"],
    ),
    (
        "the delta rule without keys of one length",
        TAYLOR + "normalize: false\nupdate: delta\n",
        [
            "6:9: `update`: needs keys of one length: `unit_keys: true`, or parts of keys that end in `{kind: l2_norm}`"
        ],
    ),
    (
        "the delta rule after other parts of keys",
        with_parts("{kind: l2_norm}", more="update: delta\nkey_parts: [{kind: softmax}]\n"),
        [
            "5:9: `update`: needs keys of one length: `unit_keys: true`, or parts of keys that end in `{kind: l2_norm}`"
        ],
    ),
    (
        "the delta rule over a map of components",
        elementwise("elu(x) + 1") + "normalize: false\nupdate: delta\nunit_keys: true\n",
        [
            "5:15: `feature_map.expression`: φ(k)·φ(k) differs between keys of one length, but the delta rule needs it to be constant: `expression: x`, after the map as a part, `{kind: elementwise}`, and `unit_keys: true`"
        ],
    ),
    (
        "the delta rule with positions",
        with_parts("{kind: positions, period: 9}", more="update: delta\nunit_keys: true\n"),
        ["9:3: `parts`: positions turn the state, which the delta rule cannot follow"],
    ),
    (
        "replay of a state that fades",
        TAYLOR + "decay: head\nreplay: 8\n",
        ["6:9: `replay`: a state that fades changes with every token: `decay: none`"],
    ),
    (
        "replay by the delta rule",
        TAYLOR + "normalize: false\nupdate: delta\nunit_keys: true\nreplay: 8\n",
        ["8:9: `replay`: the delta rule reads the state for each token that enters it"],
    ),
    (
        "replay with positions",
        with_parts("{kind: positions, period: 9}", more="replay: 8\n"),
        ["5:9: `replay`: positions turn the state with every token"],
    ),
    (
        "a ring of no sensible length",
        TAYLOR + "replay: 65\n",
        ["5:9: `replay` must be a whole number from 0 to 64, not 65"],
    ),
    (
        "the delta rule in a narrow state",
        TAYLOR + "normalize: false\nupdate: delta\nunit_keys: true\nstate_dtype: bfloat16\n",
        [
            "8:14: `state_dtype`: the delta rule needs float32: corrections are smaller than the last digit of others"
        ],
    ),
    (
        "unit keys of sums",
        TAYLOR + "unit_keys: true\n",
        ["5:12: `unit_keys`: is for `update: delta`; elsewhere `parts` may end in `{kind: l2_norm}`"],
    ),
    (
        "another update",
        TAYLOR + "update: deltas\n",
        ["5:9: `update` cannot be deltas (allowed: add, delta; did you mean `delta`?)"],
    ),
    (
        "local attention",
        SLIDING.replace("sliding_window", "local_attention"),
        ["2:8: `mixer` cannot be local_attention (allowed: <mixers>; did you mean `sliding_window`?)"],
    ),
    (
        "attention",
        SLIDING.replace("sliding_window", "attention"),
        ["2:8: `mixer` cannot be attention (allowed: <mixers>)"],
    ),
]


@pytest.mark.parametrize(
    ("text", "messages"), [row[1:] for row in BAD_SPECS], ids=[row[0].replace(" ", "-") for row in BAD_SPECS]
)
def test_message(text: str | bytes, messages: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecErrors) as caught:
        load_file(path)
    fields = dict.fromkeys(
        ["name", "mixer", *(name for cls in mixers().values() for name in spec_fields(cls))]
    )
    words = {"<mixers>": ", ".join(mixers()), "<fields>": ", ".join(fields)}
    expected = [re.sub("<[a-z]+>", lambda word: words[word[0]], message) for message in messages]
    assert str(caught.value).splitlines() == [f"{path}:{message}" for message in expected]


def test_every_fault_of_every_file_at_once(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(TAYLOR)
    (tmp_path / "a.yaml").write_text(SLIDING.replace("bad", "a").replace("64", "0"))
    (tmp_path / "good.yaml").write_text(SLIDING.replace("bad", "good"))
    (tmp_path / "c.yml").write_text(TAYLOR)
    with pytest.raises(SpecErrors) as caught:
        load_dir(tmp_path)
    assert str(caught.value).replace(str(tmp_path), "specs").splitlines() == [
        "specs/a.yaml:3:9: `window` must be a whole number from 1 to 4096, not 0",
        "specs/a.yaml:4:17: `head_dims.qk` must be a whole number from 8 to 128, not 0",
        "specs/a.yaml:4:23: `head_dims.v` must be a whole number from 16 to 256, not 0",
        "specs/b.yaml:1:7: the name `bad` differs from the name of the file, `b.yaml`",
        "specs/c.yml: spec files end in .yaml; rename it (did you mean `c.yaml`?)",
    ]
