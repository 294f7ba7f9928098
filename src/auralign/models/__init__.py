"""Networks: separators, query encoders, pretrained backbones, the held-out judge."""
