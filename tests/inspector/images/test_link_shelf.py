"""Images of links: kept for so long, within bounds, and found by nobody who lacks the id."""

import os
import time

import pytest
from PIL import Image

from inspector.bounds import private_bounds
from inspector.images.image_file import ImageFile
from inspector.images.link_shelf import DAYS, FOLDER, LinkShelf, apply_days, open_shelf
from model import InputError


@pytest.fixture
def images(tmp_path):
    made = []
    for colour in ("red", "blue", "teal"):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{colour}.png")
        made.append(ImageFile(tmp_path / f"{colour}.png"))
    return made


def shelf_of(tmp_path, **bounds):
    return LinkShelf(tmp_path / "links", private_bounds(**bounds))


def test_images_come_back_byte_for_byte_under_their_names_and_the_same_ones_under_the_same_id(tmp_path, images):
    shelf = shelf_of(tmp_path)
    name = shelf.keep(images[:2], ["red.png", "blue.png"], "address one")
    assert len(name) == 24
    copies = shelf.take(name)
    assert [copy.name for copy in copies] == ["red.png", "blue.png"]
    assert [copy.read_bytes() for copy in copies] == [image.read_bytes() for image in images[:2]]
    assert shelf.keep(images[:2], ["red.png", "blue.png"], "address one") == name
    assert shelf.keep(images[1::-1], ["blue.png", "red.png"], "address one") != name
    assert shelf.keep(images[:2], ["red.png", "blue.png"], "address two") != name
    assert not any("address" in note.read_text() for note in (tmp_path / "links").glob("*/note.json"))


@pytest.mark.parametrize("name", ["", "..", "../../etc", "a" * 24, "a" * 23 + "/"])
def test_an_id_that_names_nothing_is_refused(tmp_path, images, name):
    shelf = shelf_of(tmp_path)
    shelf.keep(images, ["a", "b", "c"], "one")
    with pytest.raises(InputError, match="aren't kept here any more"):
        shelf.take(name)


def test_what_is_older_than_is_promised_goes(tmp_path, images):
    shelf = shelf_of(tmp_path, link_days=2)
    old, young = (shelf.keep([image], ["a.png"], "one") for image in images[:2])
    for name, days in ((old, 2.1), (young, 1.9)):
        then = time.time() - 86_400 * days
        os.utime(tmp_path / "links" / name, (then, then))
    shelf.sweep()
    assert [folder.name for folder in (tmp_path / "links").iterdir()] == [young]


def test_one_person_keeps_no_more_than_a_share_and_of_all_the_oldest_make_way(tmp_path, images):
    size = len(images[0].read_bytes())
    shelf = shelf_of(tmp_path, link_bytes_per_person=size + 10)
    shelf.keep(images[:1], ["a.png"], "one")
    with pytest.raises(InputError, match="Your links' images"):
        shelf.keep(images[1:2], ["a.png"], "one")
    few = shelf_of(tmp_path / "few", links=2)
    names = []
    for age, image in zip((30, 20, 10), images, strict=True):
        names.append(few.keep([image], ["a.png"], "one"))
        then = time.time() - age
        os.utime(tmp_path / "few" / "links" / names[-1], (then, then))
    assert {folder.name for folder in (tmp_path / "few" / "links").iterdir()} == set(names[1:])


def test_a_public_server_keeps_images_only_where_its_owner_names_a_folder(tmp_path, images, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    shelf = open_shelf(private_bounds(), public=True)
    assert shelf.keep(images, ["a", "b", "c"], "one") == ""
    assert "keeps no images" in shelf.promise
    assert open_shelf(private_bounds(), public=False).root is not None
    monkeypatch.setenv(FOLDER, str(tmp_path / "kept"))
    kept = open_shelf(private_bounds(link_days=5), public=True)
    assert "5 days" in kept.promise
    assert kept.take(kept.keep(images[:1], ["a.png"], "one"))[0].read_bytes() == images[0].read_bytes()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(FOLDER, str(tmp_path / "file" / "links"))
    with pytest.raises(InputError, match=FOLDER):
        open_shelf(private_bounds(), public=True)


def test_the_owner_sets_for_how_many_days_and_the_button_says_it(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "kept"))
    monkeypatch.delenv(DAYS, raising=False)
    assert apply_days(private_bounds()) == private_bounds()
    for text, said in (("3", "3 days"), (" 0.5 ", "0.5 days"), ("1", "1 day"), ("3650", "3650 days")):
        monkeypatch.setenv(DAYS, text)
        bounds = apply_days(private_bounds())
        assert bounds == private_bounds(link_days=float(text))
        assert f"are kept for {said};" in open_shelf(bounds, public=True).promise


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "3651", "a week"])
def test_days_that_are_none_are_refused(monkeypatch, text):
    monkeypatch.setenv(DAYS, text)
    with pytest.raises(InputError, match=f"{DAYS} is “{text}”; allowed are numbers above 0 and up to 3650"):
        apply_days(private_bounds())
