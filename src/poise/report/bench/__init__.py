"""Figures of `poise bench` results, drawn from their tables alone."""
