"""The search cascade: trim, candidates, alignment, rescoring, calibration, one module each; `engine` runs them."""
