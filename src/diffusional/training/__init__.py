"""Training, plain and complete: `train(config)` fills a run folder, `load(run)` gives its model back."""
