"""Figures from arrays: metrics, baselines, attributions, attacks. Neither TensorBoard nor terminal."""
