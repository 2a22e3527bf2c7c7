"""Figures from arrays: metrics, baselines, attributions, attacks."""
