"""The tokenizer: sound in, token string out."""
