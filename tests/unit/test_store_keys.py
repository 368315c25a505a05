"""Paths to keys and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_dask.store.keys import blob_key, blob_of, blob_prefix, key_of, keys_under, path_of

segments = st.text(max_size=8) | st.sampled_from(["", "/", "%", "%25", "a/b", "..", "\x00", "ü"])
paths = st.lists(segments, min_size=1, max_size=4).map(tuple)


@settings(max_examples=60)
@given(paths)
def test_every_path_has_a_key_and_every_such_key_its_path(path: tuple[str, ...]) -> None:
    key = key_of(path)
    assert path_of(key) == path
    assert key.isascii()
    assert key.count("/") == len(path)


@settings(max_examples=60)
@given(paths, paths)
def test_a_key_lies_under_another_exactly_if_its_path_does(
    path: tuple[str, ...], prefix: tuple[str, ...]
) -> None:
    below = path[: len(prefix)] == prefix and len(path) > len(prefix)
    assert key_of(path).startswith(keys_under(prefix)) == below
    assert key_of(path).startswith(keys_under(()))


@settings(max_examples=60)
@given(st.text(max_size=30))
def test_no_two_keys_mean_the_same_path(text: str) -> None:
    path = path_of("record/" + text)
    assert path is None or key_of(path) == "record/" + text


@pytest.mark.parametrize(
    "key", ["", "x", "blob/abc/0", "record/a b", "record/%", "record/%zz/x", "record/%ff", "record"]
)
def test_a_key_that_no_path_has_is_nobodys(key: str) -> None:
    assert path_of(key) in (None, ("",))
    assert (path_of(key) == ("",)) == (key == "record/%")


def test_plain_names_are_spelled_plainly() -> None:
    assert key_of(("serving", "acme", "flights")) == "record/serving/acme/flights"
    assert key_of(("tenant", "a/b")) == "record/tenant/a%2Fb"
    assert blob_key("ab12", 3) == "blob/ab12/3"
    assert blob_of(blob_key("ab12", 3)) == "ab12"
    assert blob_key("ab12", 3).startswith(blob_prefix("ab12"))
