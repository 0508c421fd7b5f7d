"""What a VLM may be put together from: told by the folders' own files, and nothing beyond what is offered."""

import json

import pytest

from inspector.runs.part_shelf import PartShelf, list_parts
from inspector.runs.presets import BUILD, PRESETS, open_recipe, read_form, write_base, write_recipe
from model import InputError
from model.training.recipe import ASSEMBLED, read_recipe


@pytest.fixture
def folders(tmp_path):
    for name, kind in (("eyes", "siglip_vision_model"), ("tongue", "llama"), ("whole", None), ("other", "llava")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({} if kind is None else {"model_type": kind}))
    return tmp_path


def test_parts_are_told_by_their_configuration(folders):
    shelf = list_parts([str(folders / name) for name in ("eyes", "tongue", "whole", "other")], frozenset({"a/b"}))
    assert list(shelf.vision) == ["embedded", "eyes", "whole", "a/b"]
    assert list(shelf.language) == ["embedded", "tongue", "whole", "a/b"]
    assert shelf.find_vision("eyes") == str(folders / "eyes")


def test_nothing_else_can_be_named_but_where_everything_may_be(folders):
    with pytest.raises(InputError, match="isn't offered on this server; choose one of embedded"):
        PartShelf().find_language(str(folders / "tongue"))
    assert list_parts([], None).find_language(str(folders / "tongue")) == str(folders / "tongue")


def form_of(preset, **changes):
    start = {"seed": 3, "base": "embedded", "path": "", "source": "auto", **PRESETS["instruction tuning"].values}
    return read_form(**{**start, **PRESETS[preset].values, **changes})


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recipe_that_the_form_wrote_comes_back_into_it_whole(preset, tmp_path):
    form, shelf = form_of(preset, steps=7), PartShelf()
    base = write_base(form, shelf) if form.base == ASSEMBLED else form.base
    (tmp_path / "recipe.toml").write_text(write_recipe(form, base, "a title").to_toml())
    opened = open_recipe(read_recipe(tmp_path / "recipe.toml"), ("embedded",), shelf)
    assert opened.left_out == ()
    assert {**vars(form), **opened.values} == vars(form)


def test_what_the_form_has_no_field_for_is_told(tmp_path):
    recipe = read_recipe("embedded")
    with pytest.raises(InputError, match="isn't offered on this server"):
        open_recipe(read_recipe("llava"), ("embedded",), PartShelf())
    opened = open_recipe(recipe, ("embedded",), PartShelf())
    assert any("stage “" in sentence for sentence in opened.left_out)
    assert opened.values["steps"] == recipe.stages[0].steps


def test_a_vlm_of_parts_has_a_base_table_in_its_recipe():
    form = form_of(BUILD, projector="mlp")
    recipe = write_recipe(form, write_base(form, PartShelf()), "t")
    assert (recipe.parts.vision, recipe.parts.language, recipe.parts.projector) == ("embedded", "embedded", "mlp")
    with pytest.raises(InputError, match="There is no projector “cubic”"):
        write_base(form_of(BUILD, projector="cubic"), PartShelf())
