"""Archives in, rows out: decode, segment, tokenize, store."""
