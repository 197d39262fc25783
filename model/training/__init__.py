"""Training of tokenizers; the only package that imports torch."""
