"""The registry of models, one file each. Preprocessing is part of the model: an export takes raw units."""
