"""docs/options.md is what the recipes and the docstrings say."""

import runpy

import pytest

from tests.docs.test_pages import ROOT

MAKE = runpy.run_path(str(ROOT / "docs" / "make_options.py"))


def test_the_page_is_up_to_date():
    written = MAKE["PAGE"].read_text()
    assert written == MAKE["page"](), "run `python docs/make_options.py`"


def test_every_key_of_every_recipe_is_on_the_page():
    text = MAKE["PAGE"].read_text()
    for (method, dataset), recipe in MAKE["recipes"]().items():
        for section, values in recipe.items():
            keys = [f"{section}.{key}" for key in values] if hasattr(values, "items") else [section]
            for key in keys:
                assert key == "method.name" or f"`{key}`" in text, (method, dataset, key)


def test_a_key_without_a_meaning_is_an_error(monkeypatch):
    page = MAKE["page"]
    monkeypatch.setitem(page.__globals__, "comments", lambda: {})
    with pytest.raises(ValueError, match=r"no meaning is written down for .*optim\.lr"):
        page()


def test_there_are_at_most_90_options_of_methods():
    options = {key for recipe in MAKE["recipes"]().values() for key in recipe.method}
    own = sum(
        len(
            set(MAKE["recipes"]()[method, "sysu"].method) - set(MAKE["Backbone"]._fields) - {"name"}
        )
        for method in MAKE["METHODS"]
    )
    shared = len(options & set(MAKE["Backbone"]._fields))
    assert own + shared <= 90
