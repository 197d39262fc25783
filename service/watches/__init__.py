"""Stored queries: each new recording is searched by them, and whoever wants to know is told."""
