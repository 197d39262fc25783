"""Live sources: a stream, a growing file or a device is kept, tokenized and stored as it comes."""
