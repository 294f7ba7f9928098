"""What is on disk: clips, manifests, corpora, mixtures, readers of public data sets, shards."""
