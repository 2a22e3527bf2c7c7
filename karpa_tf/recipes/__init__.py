"""One file a system, to be read from top to bottom: data, model, fit, evaluate, signatures."""
