"""Learning to learn from few examples: tasks, and algorithms that adapt a network to one.

Importing this package imports nothing.
"""
