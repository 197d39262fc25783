"""Training of PairAlign's decoder (arXiv 2605.06582); what it works out is in `model.pairalign.shape`."""
