"""Folders of pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neuroflux_fl.data import load_data
from neuroflux_fl.errors import DataError, DependencyError

Colour = int | tuple[int, int, int]


def write_pictures(folder: Path, colours: list[Colour], *, size: tuple[int, int] = (8, 8), suffix: str = "png") -> None:
    """One picture of a single colour each; an integer makes a grayscale picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, colour in enumerate(colours):
        mode = "L" if isinstance(colour, int) else "RGB"
        Image.new(mode, size, colour).save(folder / f"{number}.{suffix}")


def test_train_and_test_folders(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train" / "cat", [(255, 0, 0), (0, 255, 0)], size=(20, 10))
    write_pictures(tmp_path / "train" / "dog", [(0, 0, 255)])
    write_pictures(tmp_path / "test" / "dog", [(1, 2, 3)])

    data = load_data(str(tmp_path))

    assert (data.name, data.class_names) == (tmp_path.name, ("cat", "dog"))
    assert data.image_shape == (3, 32, 32)
    assert data.train.labels.tolist() == [0, 0, 1]
    assert data.train.images[:, :, 16, 16].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert data.test.labels.tolist() == [1]
    assert (data.test.images[0, :, 0, 0] == [1, 2, 3]).all()


def test_class_folders_alone_are_split_the_same_for_every_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_pictures(tmp_path / name, list(range(10, 20)))

    one, two = (load_data(str(tmp_path), image_side=4, seed=seed) for seed in (0, 1))

    assert one.image_shape == (1, 4, 4)
    assert np.bincount(one.train.labels).tolist() == [8, 8]
    assert np.bincount(one.test.labels).tolist() == [2, 2]
    assert np.array_equal(one.test.images, two.test.images)


def test_one_coloured_picture_makes_all_of_them_rgb(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train" / "a", [7, 8])
    write_pictures(tmp_path / "test" / "a", [(1, 2, 3)])

    data = load_data(str(tmp_path))

    assert data.train.images[0, :, 0, 0].tolist() == [7, 7, 7]


def test_jpeg_and_other_files(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", [100] * 5, size=(200, 100), suffix="jpeg")
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden").mkdir()

    data = load_data(str(tmp_path))

    assert data.class_names == ("a",)
    assert len(data.train) + len(data.test) == 5
    assert abs(int(data.train.images.mean()) - 100) <= 1


def test_sixteen_bit_pictures_keep_their_high_byte(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(2):
        Image.fromarray(np.full((4, 4), 0x4321, dtype=np.uint16)).save(tmp_path / "a" / f"{number}.png")

    assert np.unique(load_data(str(tmp_path)).train.images).tolist() == [0x43]


def test_only_chosen_pictures_are_decoded(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train" / "a", [1] * 40)
    write_pictures(tmp_path / "test" / "a", [1])
    read: list[Any] = []
    original = Image.open

    def count(source: Any, **options: Any) -> Image.Image:
        read.append(source)
        return original(source, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "open", count)
        load_data(str(tmp_path), train_limit=3)

    assert len(read) == 4


def test_a_corrupt_picture_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", [1] * 3)
    for content in (b"", b"not a picture", (tmp_path / "a" / "0.png").read_bytes()[:50]):
        (tmp_path / "a" / "1.png").write_bytes(content)
        with pytest.raises(DataError, match=r"1\.png is not a readable picture") as caught:
            load_data(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no class folders: give one subfolder"):
        load_data(str(tmp_path))
    write_pictures(tmp_path / "a", [1, 2])
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"Class folder .*b has no PNG or JPEG pictures"):
        load_data(str(tmp_path))


def test_a_single_picture_leaves_nothing_to_test_on(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", [1])

    with pytest.raises(DataError, match="has no test images"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(("there", "missing"), [("train", "test"), ("test", "train")])
def test_a_missing_split_is_refused(tmp_path: Path, there: str, missing: str) -> None:
    write_pictures(tmp_path / there / "a", [1])

    with pytest.raises(DataError, match=f"has {there}/ but no {missing}/"):
        load_data(str(tmp_path))


def test_a_class_only_in_the_test_folder_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train" / "a", [1])
    write_pictures(tmp_path / "test" / "b", [1])

    with pytest.raises(DataError, match=r"has class 'b', which .*train does not have"):
        load_data(str(tmp_path))


def test_pillow_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "a", [1, 2])
    monkeypatch.setitem(sys.modules, "PIL", None)

    with pytest.raises(DependencyError, match=r'Pillow, which is not installed: pip install "neuroflux-fl\[parquet\]"'):
        load_data(str(tmp_path))
