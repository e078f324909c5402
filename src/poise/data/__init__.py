"""Labelled images from everywhere: streamed, checked, with ids that survive splitting."""

from poise.data.dataset import Dataset, ImageSource, check_matches, from_arrays
from poise.data.sources import load, names

__all__ = ["Dataset", "ImageSource", "check_matches", "from_arrays", "load", "names"]
