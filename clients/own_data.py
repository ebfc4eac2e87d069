"""Looks at a device's data once, in a process of its own: the one that asks lives for weeks and should stay small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from neuroflux_fl.side_process import answer_request, ask_side_process


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnData:
    """What was found."""

    data: str
    """The name, or the folder with its whole path."""
    images: int
    """For training."""
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """(channels, height, width) as loaded; the run may have the images resized."""
    cuda: bool
    """Whether torch can use a GPU on this device."""

    def describe(self) -> str:
        """For people."""
        shape = "x".join(map(str, self.image_shape))
        return f"{self.images} training images of {shape} in {len(self.class_names)} classes ({self.data})"


def look_at_data(data: str, environment: Mapping[str, str], folder: Path) -> OwnData:
    """Load a data set as training would, in another process, and tell what it is.

    Args:
        data: a known name, or a folder; relative to ``folder``.
        environment: of the process.
        folder: its working directory.

    Raises:
        NeurofluxError: of the class that loading it raised: the data is missing, corrupt, or needs a package.
    """
    answer = ask_side_process("clients.own_data", data, environment=environment, folder=folder)
    return OwnData(
        **{**answer, "class_names": tuple(answer["class_names"]), "image_shape": tuple(answer["image_shape"])}
    )


def _look(data: str) -> OwnData:
    import torch

    from neuroflux_fl.data import load_data
    from neuroflux_fl.data.load import DATA_NAMES

    images = load_data(data)
    return OwnData(
        data=data if data in DATA_NAMES else str(Path(data).expanduser().resolve()),
        images=len(images.train),
        class_names=images.class_names,
        image_shape=images.image_shape,
        cuda=torch.cuda.is_available(),
    )


if __name__ == "__main__":
    answer_request(lambda data: asdict(_look(data)))
