"""The registry of models, one file each. Preprocessing lives inside the model, so an export takes raw units."""
