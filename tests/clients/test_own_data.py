"""A device's data is looked at in a process of its own, and what is wrong with it keeps its kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clients.own_data import look_at_data
from neuroflux_fl.errors import DataError


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(5):
            colour = np.full((8, 8, 3), (number, 100, 200), np.uint8)
            Image.fromarray(colour).save(tmp_path / "pictures" / name / f"{number}.png")

    found = look_at_data("pictures", os.environ, tmp_path)

    assert found.data == str(tmp_path / "pictures")
    assert found.class_names == ("cat", "dog")
    assert found.image_shape == (3, 32, 32)
    assert 0 < found.images <= 10
    assert found.describe() == f"{found.images} training images of 3x32x32 in 2 classes ({tmp_path / 'pictures'})"


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'nowhere' is neither a known name"):
        look_at_data("nowhere", os.environ, tmp_path)


def test_the_asking_process_imports_neither_torch_nor_flower() -> None:
    code = (
        "import sys; import clients.own_data, clients.budget, clients.supervisor, neuroflux_fl.cli.client; "
        "print(sorted({'torch', 'flwr'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
