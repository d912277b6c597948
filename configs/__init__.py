"""YAML files: one per tokenizer."""
