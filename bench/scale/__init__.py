"""Search in large archives: how long each stage takes, and which engine finds candidates."""
