"""Labelled images: loading, dealing out to devices, and the transforms of a training batch."""

from neuroflux_fl.data.images import ImageData, LabelledImages
from neuroflux_fl.data.load import load_data
from neuroflux_fl.data.partition import partition, split_validation
from neuroflux_fl.data.transform import augment, normalise

__all__ = ["ImageData", "LabelledImages", "augment", "load_data", "normalise", "partition", "split_validation"]
