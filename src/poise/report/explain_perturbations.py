"""What each attack adds to an image: heat-maps of the change, all attacks on one scale."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import polars as pl

from poise.report.explain_folder import Explanation
from poise.report.explain_grid import Picture, caption, colour_bar, grid, heat, photo
from poise.report.words import count


def perturbation_maps(explained: Explanation) -> go.Figure:
    """The change of each pixel under every attack, one row an attack, on one scale, with ΔW and SSIM under each.

    As Fig. 1 of Martinez et al., Underconfidence Adversarial Training, whose heat-maps share the least and largest
    change of all attacks; here the scale has 0 in its middle, so that up and down can be compared. Of colour images the
    channel that changes most is shown. ΔW is the mean change of a pixel, in the units of the pixel range; it is at
    most the largest change.

    Args:
        explained: explanations of a run.

    Returns:
        a figure with the clean images in the first row.
    """
    clean, recipes = explained.images["clean"], explained.recipes
    changes = {name: np.stack([*map(signed, clean, explained.images[f"attacked.{name}"])]) for name in recipes}
    most = max(float(np.abs(change).max()) for change in changes.values()) or 1e-3
    sizes = {name: explained.pictures.filter(pl.col("recipe") == name)["delta_w"].to_numpy() for name in recipes}
    mean = {name: float(size.mean()) for name, size in sizes.items()}
    largest = max(recipes, key=lambda name: mean[name])
    title = f"{largest} changes these images most: ΔW {mean[largest]:.3f} on average, of at most {most:.3f} in a pixel"
    told = "; ".join(f"{name} {value:.3f}" for name, value in mean.items())
    columns = len(clean)
    alt = f"Changes of {count(columns, 'image')} on one scale from -{most:.3f} to {most:.3f}. Mean ΔW: {told}."
    shown = grid(["clean", *recipes], columns, title=title, alt=alt, below=58)
    traces = [photo(clean[place], 0, place, columns) for place in range(columns)]
    for line, name in enumerate(recipes, start=1):
        rows = explained.pictures.filter(pl.col("recipe") == name)
        for place, row in enumerate(rows.iter_rows(named=True)):
            traces.append(heat(changes[name][place], line, place, columns, note="change"))
            told = f"ΔW {row['delta_w']:.3f}<br>SSIM {row['ssim']:.2f}"
            shown["annotations"].append(caption(told, line, place, columns))
    ticks = [round(part * most, 3) for part in (-1, -0.5, 0, 0.5, 1)]
    shown["coloraxis"] = colour_bar("change of the pixel, units of the pixel range", -most, most, ticks)
    return go.Figure(data=traces, layout=shown)


def signed(clean: Picture, attacked: Picture) -> Picture:
    """The change (H, W) of an image (C, H, W), of the channel that changes most in each pixel, with its sign.

    >>> before, after = np.zeros((2, 1, 1), np.float32), np.array([[[0.25]], [[-0.5]]], np.float32)
    >>> signed(before, after).item()
    -0.5
    """
    change = attacked - clean
    where = np.abs(change).argmax(axis=0, keepdims=True)
    found: Picture = np.take_along_axis(change, where, axis=0)[0]
    return found
