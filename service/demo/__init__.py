"""The demo archive: a small radio station that never was, spoken by espeak-ng. See make.py for how it came about."""
