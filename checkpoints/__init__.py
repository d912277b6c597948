"""Small tokenizers that ship, and the catalogue of the ones that do not."""
