"""SavedModels: signatures, versions, warm-up, verification."""
