"""Hits in the formats of other programs: tables, and labels for the editors that people annotate speech with."""
