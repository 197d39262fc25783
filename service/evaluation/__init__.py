"""How good the answers are: what is asked and expected, what is right, figures, curves, plots, lists of detections."""
