"""Chapter 5: what its programs share: models, schedulers, data, training, evaluation."""
