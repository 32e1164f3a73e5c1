"""YAML as it is read: what a person writes and nothing else, whichever of PyYAML's parsers is there."""

import importlib.util

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raysurl.errors import InputError
from raysurl.recipe import files

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def without_libyaml():
    """The module as it is where PyYAML was built without libyaml."""
    spec = importlib.util.spec_from_file_location("raysurl.recipe.files_plain", files.__file__)
    module = importlib.util.module_from_spec(spec)
    fast = yaml.CSafeLoader
    del yaml.CSafeLoader
    try:
        spec.loader.exec_module(module)
    finally:
        yaml.CSafeLoader = fast
    assert not issubclass(module._PlainLoader, fast)
    return module


parsers = [files.parse_yaml, without_libyaml().parse_yaml]
either = pytest.mark.parametrize("parse", parsers, ids=["libyaml", "PyYAML"])


@given(trees, st.booleans())
def test_what_is_written_is_read(tree, flow):
    text = yaml.safe_dump(tree, default_flow_style=flow)
    for parse in parsers:
        assert parse(text, "file") == tree


@either
@pytest.mark.parametrize(
    ("text", "number"), [("010", 10), ("-010", -10), ("00", 0), ("0_17", 17), ("007.5", 7.5), ("0x10", 16)]
)
def test_zeros_before_a_number_make_it_no_octal_one(parse, text, number):
    assert parse(f"a: {text}", "file") == {"a": number}


@either
def test_a_value_may_stand_in_two_places(parse):
    text = "a: &x {b: [1, &y 2]}\nc: *x\nd: {<<: *x, e: *y}"
    inner = {"b": [1, 2]}
    assert parse(text, "file") == {"a": inner, "c": inner, "d": {**inner, "e": 2}}


GROWING = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 20))


@either
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a: 1\nb: !!python/object/apply:os.system [ls]",
            "line 2 has the tag tag:yaml.org,2002:python/object",
        ),
        ("a: !!str 1", "line 1 has the tag tag:yaml.org,2002:str; give plain values"),
        ("a: !local 1", "line 1 has the tag !local"),
        ("a: &x [*x]", "a value holds itself"),
        ("a: &x {b: {c: *x}}", "a value holds itself"),
        ("a: &x 1\nb: &x 2", "the anchor &x is given twice"),
        ("[" * 41 + "]" * 41, "nested more than 40 deep"),
        (GROWING, "unfolds to more than 100,000 values"),
        ("a: {b: 1}\nc: 2\na: 3", "the key a is given twice, in lines 1 and 3; keep one"),
        ("a: {b: 1, b: 1}", "the key b is given twice"),
        ("a: *nothing", "is not valid YAML: found undefined alias"),
        ("a: [1\n b: {", "is not valid YAML: .*expected .*, line 2"),
        ("a: 1\n---\nb: 2", "is not valid YAML: but found another document, line 2"),
        ("a:\n\t- b", "is not valid YAML: found character .*that cannot start any token, line 2"),
        ("a: \x01", "is not valid YAML: "),
        ("a: 1\nb: [1:30]", "line 2 has 1:30, a number to base 60; write it to base 10"),
        ("a: 1:30.5", "line 1 has 1:30.5, a number to base 60"),
        # Python reads these and cannot print them
        ("a: 1\nb: 0x" + "f" * 5000, "line 2 has a number of 5,002 digits; no recipe has one"),
        ("a: [-0b" + "1" * 20_000 + "]", "line 1 has a number of 20,003 digits"),
        ("a: 0" + "7" * 5000, "line 1 has a number of 5,001 digits"),
        ("a: 1" + ":59" * 3000, "line 1 has a number of 9,001 digits"),
        ("a:\n  ? 0x" + "f" * 5000 + "\n  : 1", "line 2 has a number of 5,002 digits"),
        ("a: " + "9" * 5000, "line 1 has a number of 5,000 digits"),
        ("a: 2026-13-45", "is not valid YAML: month must be in 1..12"),
    ],
)
def test_the_rest_is_refused_in_one_sentence(parse, text, said):
    with pytest.raises(InputError, match=said) as refused:
        parse(text, "file")
    assert "\n" not in str(refused.value)
