"""Figures from arrays: metrics, baselines, attributions, attacks. Imports neither TensorBoard nor a terminal."""
