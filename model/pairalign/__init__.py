"""PairAlign: token sequences that a decoder writes while it looks at the encoder's embeddings.

Banerjee et al. 2026, arXiv 2605.06582, after its description; no code of it is public.
"""
