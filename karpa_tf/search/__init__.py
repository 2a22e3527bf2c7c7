"""`karpa-tf search`: settings that are better than the defaults, found on validation alone."""
