"""Benchmarks: one question a package."""
