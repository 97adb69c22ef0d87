import re
from dataclasses import replace

import pytest
import torch

from ltcam import data as datasets
from ltcam import files
from ltcam.errors import InputError
from ltcam.experiment.recipe import Recipe, planned, profile, settings, tuning
from tests import tiny


def test_a_profile_without_seeds_is_one_training_in_the_folder_itself():
    (alone,) = planned("demo", {"epochs": 2, "seed": 5})
    assert alone[:3] == ("", "", "") and (alone.recipe.epochs, alone.recipe.seed) == (2, 5)


def test_seeds_and_folds_have_folders_and_parts_of_their_own():
    seeds = planned("voc2012", {"test": "val"}, [3])
    assert [t[:3] for t in seeds] == [("seed3", "seed3", "")] and seeds[0].recipe.seed == 3
    folds = planned("ksdd", {"lr": 0.5}, [0, 1], 3)
    assert [t.name for t in folds] == [f"seed{s}/fold{f}" for s in (0, 1) for f in range(3)]
    fifth = folds[4]
    assert (fifth.recipe.seed, fifth.recipe.train, fifth.recipe.test, fifth.seed, fifth.fold) == (
        1,
        "train1",
        "test1",
        "seed1",
        "fold1",
    )
    assert {t.recipe.lr for t in folds} == {0.5}
    with pytest.raises(InputError, match=r"folds=3 without seeds: expected seeds too, e.g. \[0\]"):
        planned("ksdd", {}, [], 3)


def test_profiles_are_read_by_data_set(tmp_path, monkeypatch):
    assert list(profile("paper")) == ["ksdd2", "voc2012"] and profile("demo")["demo"]["recipe"]["epochs"] == 15
    monkeypatch.setattr(files, "NOTEBOOKS", tiny.profile(tmp_path, "voc2012", seeds=[0]))
    assert profile("tiny")["voc2012"]["seeds"] == [0]
    with pytest.raises(InputError, match=r"profile 'big' is unknown: expected one of \['tiny'\]"):
        profile("big")


def test_settings_are_read_as_in_a_profile():
    found = settings(["epochs=8", "slow=0.3", "head=gap", "size=[64, 32]", "balance=true"])
    assert found == {"epochs": 8, "slow": 0.3, "head": "gap", "size": [64, 32], "balance": True}
    assert Recipe(**found).size == (64, 32) and hash(Recipe(**found))
    with pytest.raises(InputError, match=r"'epoch' is not a setting of a recipe: expected NAME=VALUE with a name of data, "):
        settings(["epoch=8"])


def test_wrong_recipes():
    with pytest.raises(InputError, match="frozen=7: expected a whole number from 0 to 5"):
        Recipe(frozen=7)
    for name in ("epochs", "batch_size"):
        with pytest.raises(InputError, match=f"{name}=0: expected a whole number, at least 1"):
            Recipe(**{name: 0})
    with pytest.raises(InputError, match="augment='bold'"):
        replace(Recipe(), augment="bold")
    with pytest.raises(TypeError, match="momentum"):
        Recipe(momentum=0.9)


def test_a_recipe_is_tried_on_a_hold_out_of_the_training_part(looks):
    whole, fit, tune = (datasets.load("voc2012", part) for part in ("train", "train/fit", "train/tune"))
    names = [{entry.name for entry in data.entries} for data in (whole, fit, tune)]
    assert names[1] | names[2] == names[0] and not names[1] & names[2] and len(names[2]) == 1  # a tenth of eight
    assert (fit.part, tune.part) == ("train/fit", "train/tune") == (lambda r: (r.train, r.test))(tuning(Recipe(data="voc2012")))


def test_groups_stay_on_one_side_of_a_hold_out(looks):
    fit, tune = (datasets.load("magnetic_tile", f"train/{side}") for side in ("fit", "tune"))
    assert len(tune) == 6 and not set(fit.groups) & set(tune.groups)  # one tile of six exposures
    with pytest.raises(datasets.DataError, match="part 'train/test' is unknown: expected 'train', 'train/fit' or 'train/tune'"):
        datasets.load("magnetic_tile", "train/test")


def test_the_first_images_of_a_part(looks):
    whole, few = datasets.load("voc2012", "train"), datasets.load("voc2012", "train/5")
    assert (few.part, len(few)) == ("train/5", 5) and few.entries == whole.entries[:5]
    assert few.scored == [i for i in whole.scored if i < 5] and torch.equal(few[4].image, whole[4].image)
    assert few.fingerprint not in (whole.fingerprint, datasets.load("voc2012", "train/4").fingerprint)


def test_a_hold_out_of_generated_images():
    whole, tune = datasets.load("demo", "train"), datasets.load("demo", "train/tune")
    names = [entry.name for entry in whole.entries]
    assert len(tune) == 10 and torch.equal(tune[3].mask, whole[names.index(tune[3].name)].mask)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr=", "lr=None: expected a number from 0"), ("lr=fast", "lr='fast'"), ("lr=-0.1", "lr=-0.1"), ("lr=.inf", "lr=inf"),
        ("slow=true", "slow=True"), ("weight_decay=[1]", "weight_decay="), ("frozen=all", "frozen='all': expected a"),
        ("frozen=2.5", "frozen=2.5"), ("frozen=6", "frozen=6: expected a whole number from 0 to 5"), ("seed=one", "seed='one'"),
        ("seed=1.5", "seed=1.5"), ("seed=-1", "seed=-1"), ("balance=none", "balance='none': expected true or false"),
        ("balance=1", "balance=1"), ("bfloat16=yes please", "bfloat16='yes please'"), ("epochs=0", "epochs=0"),
        ("epochs=ten", "epochs='ten'"), ("batch_size=2.0", "batch_size=2.0"), ("width=0", "width=0"),
        ("hidden=wide", "hidden='wide'"),        ("augment=more", "augment='more'"), ("head=big", "head='big'"),
    ],
)  # fmt: skip
def test_a_setting_of_another_kind_is_named(text, said):
    with pytest.raises(InputError, match=re.escape(said)):
        Recipe(**settings([text]))


def test_numbers_are_read_as_people_write_them():
    recipe = Recipe(**settings(["lr=1e-3", "slow=0", "weight_decay=1", "frozen=0", "seed=0", "balance=true", "hidden=null"]))
    assert (recipe.lr, recipe.slow, recipe.weight_decay, recipe.frozen) == (0.001, 0.0, 1.0, 0) and recipe.balance is True
    assert all(type(value) is float for value in (recipe.lr, recipe.slow, recipe.weight_decay)) and recipe.hidden is None
