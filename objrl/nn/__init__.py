"""Parts that the models share: blocks, spatial transformers, distributions, mixtures."""
