"""PairAlign: token sequences that a decoder writes while it looks at the encoder's embeddings.

After the description in arXiv 2605.06582; no code of it is public.
"""
