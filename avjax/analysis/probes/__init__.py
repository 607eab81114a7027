"""Linear probes: features, splits, the fit, scores, and probes that were trained."""
