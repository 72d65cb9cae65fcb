"""What the options of a recipe may be: keys, types and ranges, told before anything is made."""

import math
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.support.recipes import RECIPES, ROOT, recipe_of, small
from tests.support.rows import each
from vireid_jax import build, main, options, train


def check(config):
    build.check(config, train=train.Options)


def changed(key, value, recipe="smcl", dataset="sysu"):
    """A recipe with a value of any type."""
    c = recipe_of(recipe, dataset)
    section, _, name = key.rpartition(".")
    with c.unlocked(), c.ignore_type():
        (c[section] if section else c)[name] = value
    return c


def test_every_recipe_is_accepted():
    for recipe in RECIPES:
        for dataset in ("synthetic", "sysu", "regdb", "llcm", "folders"):
            check(recipe_of(recipe, dataset))


@each("key, value, message", [
    ("seed", -1, "seed is -1, expected a number from 0 to 4,294,967,295"),
    ("seed", True, "seed is True, expected a whole number"),
    ("run_name", 3, "run_name is 3, expected text"),
    ("train.epochs", math.inf, "train.epochs is inf, expected a number above 0 and up to 1,000,0"),
    ("train.epochs", 1e12, "train.epochs is 1000000000000.0, expected a number above 0"),
    ("train.epochs", None, "train.epochs is None, expected a number"),
    ("train.eval_every", math.inf, "train.eval_every is inf"),
    ("train.keep", 0, "train.keep is 0, expected a number from 1 to 10,000; resuming needs one"),
    ("optim.lr", "a", "optim.lr is 'a', expected a number"),
    ("optim.lr", -1.0, "optim.lr is -1.0, expected a number from 0 to 1,000"),
    ("optim.name", "x", r"optim.name is 'x', expected one of \['adam', 'sgd'\]"),
    ("optim.warmup_epochs", math.inf, "optim.warmup_epochs is inf"),
    ("optim.restart_epoch", 1e12, "optim.restart_epoch is 1000000000000.0, expected"),
    ("augment.pad", 10**12, "augment.pad is 1000000000000, expected a number from 0 to 1,024"),
    ("augment.flip", 2.0, "augment.flip is 2.0, expected a number from 0 to 1"),
    ("augment.erase", ("a", "a"), r"augment.erase is \('a', 'a'\), expected a number or a tuple"),
    ("sampler.num_ids", 1, "sampler.num_ids is 1, expected .*; negatives are needed"),
    ("sampler.num_instances", 10**12, "sampler.num_instances is 1000000000000, expected"),
    ("sampler.rule", "x", "sampler.rule is 'x', expected one of"),
    ("loader.prefetch", 0, "loader.prefetch is 0, expected a number from 1"),
    ("method.width", 0, "method.width is 0, expected a number from 1 to 1,024"),
    ("method.metric_weight", math.nan, "method.metric_weight is nan, expected a number from 0"),
    ("eval.batch_size", 10**9, "eval.batch_size is 1000000000, expected a number from 1 to 65,5"),
    ("data.image_size", (48.5, 24), r"data.image_size is \(48.5, 24\), expected \(a whole number"),
    ("data.image_size", (48,), r"data.image_size is \(48,\), expected \(a whole number, a whole"),
    ("data.root", 3, "data.root is 3, expected text, a path or None"),
    ("data.image_size", None, "data.image_size is None, expected a tuple"),
    ("data.name", [[1]], r"data.name is \[\[1\]\], expected text"),
    ("method.name", {"a": 1}, "method.name is {'a': 1}, expected text"),
    ("method.name", "x", "no method 'x'; expected one of"),
    ("devices.fsdp", 0, "devices.fsdp is 0, expected a number from 1"),
    ("optim.lrr", 1.0, "the section 'optim' of the recipe has the unknown key 'lrr'; expected lr"),
    ("data.foo", 1, "the section 'data' of the recipe has the unknown key 'foo'"),
    ("method.widht", 8, "the section 'method' .* unknown key 'widht'; expected .*width"),
    ("optim", 3, "optim is 3, expected a section"),
    ("extra", 3, "the recipe has the unknown key 'extra'"),
])  # fmt: skip
def test_what_an_option_cannot_be(key, value, message):
    with pytest.raises(ValueError, match=message):
        check(changed(key, value))


def test_a_section_or_a_key_that_is_missing():
    c = recipe_of("smcl")
    for section in ("", *(key for key, value in c.items() if hasattr(value, "items"))):
        for key in c[section] if section else c:
            short = recipe_of("smcl")
            del (short[section] if section else short)[key]
            if section == "data" and key not in ("name", "image_size"):
                check(short)  # its default is the data set's own
                continue
            with pytest.raises(options.OptionError, match=f"lacks the key '{key}'; add it") as told:
                check(short)
            assert told.value.key == f"{section}.{key}".strip(".")


def test_every_number_of_a_recipe_has_a_range():
    for recipe in RECIPES:
        for dataset in ("synthetic", "regdb", "folders"):
            for key, value in options.flat(recipe_of(recipe, dataset).to_dict()).items():
                if options._numbers(value):
                    assert options.range_of(key) is not None, key


def test_numbers_of_numpy_are_numbers():
    options.check_types("x", {"a": np.int32(3), "b": np.float32(1)}, {"a": int, "b": float})
    with pytest.raises(options.OptionError, match=r"x\.a is .*, expected a whole number"):
        options.check_types("x", {"a": np.float32(3)}, {"a": int})


def test_what_only_a_trace_finds_is_refused_before_data_are_made(tmp_path):
    for key, value, message in (
        ("method.dtype", "int8", "method.dtype is 'int8', expected one of"),
        ("method.depth", 51, "depth"),
        ("augment.visible_channel", "x", "augment.visible_channel is 'x', expected one of none"),
        ("augment.erase_area", (0.5, 0.1), "augment.erase_area is"),
        ("optim.multipliers", (("no_such_part", 0.1),), "matches no parameter"),
        ("sampler.num_ids", 100, "num_ids is 100, but only 6 identities"),
        ("data.train_visible", 9999, "take more than 8,589,934,592 bytes"),
    ):
        c = small("smcl", "synthetic", tmp_path)
        section, name = key.split(".")
        c[section][name] = value
        c.data.train_ids = 4000 if name == "train_visible" else 6
        with pytest.raises(ValueError, match=message):
            train.fit(c, tmp_path / "run")
        assert not list(tmp_path.iterdir()), key


def test_a_folder_that_cannot_be_written_to_is_refused_first(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/run"):
        with pytest.raises(OSError, match=f"{tmp_path}/file is none; name another folder"):
            train.fit(small("smcl", "synthetic", tmp_path), tmp_path / folder)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# Any value at all -------------------------------------------------------------------------------

TEXTS = ("", "x", "None", "nan", "inf", "-inf", "-1", "0", "1e12", "1e300", "(1,", "True", "1.5",
         "(0.5,)", "('a','b')", "()", "-0.0", "9" * 30, "\x1b[31m", "/no/such", "ä")  # fmt: skip
ANY = (None, True, -1, 0, 1.5, 10**30, math.nan, math.inf, "", "x", (), (1,), ("a", 2.0),
       {"a": 1}, b"x", (math.nan, 0.5), [[1]], object())  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_bad_values_of_every_key(recipe, tmp_path, monkeypatch):
    """Twelve values from a seed: a line or a recipe that can be traced, in no time, no file."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(f"bad values of {recipe}")
    accepted = []
    for key in options.flat(recipe_of(recipe).to_dict()):
        tries = [(key, text) for text in rng.sample(TEXTS, 6)]
        for way, value in [*tries, *((None, value) for value in rng.sample(ANY, 6))]:
            start = time.monotonic()
            try:
                if way:
                    c, _ = main.changed(recipe_of(recipe), [f"--config.{key}={value}"])
                else:
                    c = changed(key, value, recipe, "synthetic")
                check(c)
            except (ValueError, OSError) as error:
                assert str(error) and "\n" not in str(error), (key, value)
            else:
                accepted.append((key, value, c))
            assert time.monotonic() - start < 20, (key, value)
    traced = [row for row in accepted if row[0].split(".")[0] in ("augment", "method", "optim")]
    for key, value, c in rng.sample(traced, min(12, len(traced))):
        c = c.copy_and_resolve_references().unlock()
        c.data.cache = str(tmp_path / "cache")
        c.data.train_ids = 1  # refused after all that the recipe says has been tried
        try:
            build.build(c)
        except (ValueError, OSError) as error:
            assert str(error), (key, value)
        else:
            raise AssertionError("one person cannot be trained on")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bad_values_of_a_command(tmp_path):
    """The same as a user sees it: one line, no traceback, no folder."""
    for change, code in (
        ("train.epochs=inf", 1),
        ("augment.erase=('a','a')", 1),
        ("train.steps=20", 2),
        ("method.name=agw", 2),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "vireid_jax.main", f"--config={ROOT}/configs/smcl.py",
             f"--config.{change}", f"--workdir={tmp_path}/run"],
            capture_output=True, text=True, cwd=tmp_path, timeout=120,
        )  # fmt: skip
        assert done.returncode == code and done.stderr.startswith("error: "), done.stderr
        assert "Traceback" not in done.stderr and not list(pathlib.Path(tmp_path).iterdir())
