"""Parquet files in the hub's layout, small ones and the real ones."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from neuroflux_fl.data import load_data
from neuroflux_fl.errors import DataError

SHARED_DATA = Path(__file__).parents[3] / "../shared/data"


def picture(value: int | tuple[int, int, int], *, side: int = 4, encoding: str = "PNG") -> bytes:
    stream = BytesIO()
    Image.new("L" if isinstance(value, int) else "RGB", (side, side), value).save(stream, encoding)
    return stream.getvalue()


def write(path: Path, labels: list[int | None], pictures: list[bytes | None], **options: Any) -> None:
    """Options: names (of classes, in the metadata), image and label (names of the columns)."""
    images = [{"bytes": content, "path": None} for content in pictures]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    label = options.get("label", "label")
    table = pa.table({options.get("image", "image"): pa.array(images, kind), label: pa.array(labels, pa.int64())})
    if "names" in options:
        features = {label: {"_type": "ClassLabel", "names": options["names"]}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=2)


def write_both(folder: Path, **options: Any) -> None:
    for split in ("train", "test"):
        write(folder / f"{split}-00000-of-00001.parquet", [0, 1], [picture(5), picture(6)], **options)


def test_shards_row_groups_and_limits(tmp_path: Path) -> None:
    # Picture i has the value i and the label i % 2; rows are spread over two files of three and one row groups.
    write(tmp_path / "train-0.parquet", [0, 1, 0, 1, 0], [picture(value) for value in range(5)], names=["even", "odd"])
    write(tmp_path / "train-1.parquet", [1, 0], [picture(5), picture(6)], names=["even", "odd"])
    write(tmp_path / "test-0.parquet", [1], [picture(9)])

    everything = load_data(str(tmp_path))
    some = load_data(str(tmp_path), train_limit=4)

    assert everything.class_names == ("even", "odd")
    assert everything.image_shape == (1, 4, 4)
    assert everything.train.images[:, 0, 0, 0].tolist() == list(range(7))
    assert everything.train.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert np.bincount(some.train.labels).tolist() == [2, 2]
    assert (some.train.images[:, 0, 0, 0] % 2 == some.train.labels).all()


def test_columns_are_found_by_kind_and_classes_counted_without_names(tmp_path: Path) -> None:
    write_both(tmp_path, image="img", label="fine_label")
    write(tmp_path / "test-1.parquet", [4], [picture(1)], image="img", label="fine_label")

    assert load_data(str(tmp_path)).class_names == ("0", "1", "2", "3", "4")


def test_webp_is_grayscale_by_its_pixels(tmp_path: Path) -> None:
    for split in ("train", "test"):
        stream = BytesIO()
        Image.new("L", (4, 4), 77).save(stream, "WEBP", lossless=True)
        write(tmp_path / f"{split}.parquet", [0], [stream.getvalue()])

    data = load_data(str(tmp_path), image_side=8)

    assert data.image_shape == (1, 8, 8)
    assert (data.train.images == 77).all()


def test_colour_keeps_three_channels(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0], [picture((1, 2, 3))])
    write(tmp_path / "test.parquet", [0], [picture(4)])

    data = load_data(str(tmp_path))

    assert data.train.images[0, :, 0, 0].tolist() == [1, 2, 3]
    assert data.test.images[0, :, 0, 0].tolist() == [4, 4, 4]


def test_mixed_sizes_need_a_side(tmp_path: Path) -> None:
    write_both(tmp_path)
    write(tmp_path / "train-1.parquet", [0], [picture(1, side=6)])

    with pytest.raises(DataError, match=r"train-1.parquet row 0 is 6x6 pixels, others are 4x4: give an image side"):
        load_data(str(tmp_path))
    assert load_data(str(tmp_path), image_side=5).image_shape == (1, 5, 5)


def test_a_missing_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [0], [picture(1)])

    with pytest.raises(DataError, match=r"none for the test split: name them test-\*\.parquet"):
        load_data(str(tmp_path))


def test_empty_files_are_refused(tmp_path: Path) -> None:
    write_both(tmp_path)
    write(tmp_path / "test-00000-of-00001.parquet", [], [])

    with pytest.raises(DataError, match="has no rows in its test"):
        load_data(str(tmp_path))


def test_corrupt_files_are_named(tmp_path: Path) -> None:
    write_both(tmp_path)
    path = tmp_path / "test-00000-of-00001.parquet"
    whole = path.read_bytes()
    for content in (b"", b"PAR1 and no more", whole[: len(whole) // 2], whole[:4] + bytes(300) + whole[304:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet is not a readable Parquet file") as caught:
            load_data(str(tmp_path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [{"bytes": b"x"}]}, "no integer label column: name it label"),
        ({"image": [{"bytes": b"x"}], "label": ["cat"]}, "columns image, label, but no integer label column"),
        ({"label": [0]}, "no image column: it must be a struct of 'bytes'"),
        ({"image": [{"bytes": b"x"}], "label": pa.array([None], pa.int64())}, "1 rows without a 'label'"),
        ({"image": [{"bytes": b"x"}], "label": [0]}, "row 0 is not a readable picture"),
        ({"image": pa.array([None], pa.struct([("bytes", pa.binary())])), "label": [0]}, "row 0 has no picture"),
        ({"image": [{"bytes": b"x"}], "label": [-1]}, "train split: label -1 at index 0 is out of range"),
    ],
)
def test_unfit_columns_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    write_both(tmp_path)
    parquet.write_table(pa.table(columns), tmp_path / "train-00000-of-00001.parquet")

    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path))


def test_labels_beyond_the_named_classes_are_refused(tmp_path: Path) -> None:
    write_both(tmp_path, names=["only"])

    with pytest.raises(DataError, match=r"label 1 at index 1 is out of range for 1 classes"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "shape", "first_class", "mean"),
    [
        ("cifar10", (3, 32, 32), "airplane", (0.4914, 0.4822, 0.4465)),
        ("fashion-mnist", (1, 28, 28), "T-shirt/top", (0.2860,)),
    ],
)
def test_real_data(name: str, shape: tuple[int, int, int], first_class: str, mean: tuple[float, ...]) -> None:
    if not (SHARED_DATA / name).is_dir():
        pytest.skip(f"the real {name} files are not on this machine")

    data = load_data(str(SHARED_DATA / name), train_limit=500, test_limit=20)

    assert (data.name, data.image_shape, data.class_names[0]) == (name, shape, first_class)
    assert np.bincount(data.train.labels).tolist() == [50] * 10
    assert np.bincount(data.test.labels).tolist() == [2] * 10
    assert data.mean == pytest.approx(mean, abs=0.03)  # published for the whole train split
