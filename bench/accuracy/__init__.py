"""How well the product finds what is said, measured through its own command line."""
