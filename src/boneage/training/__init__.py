"""The network, its training, its explanation and its export. PyTorch."""
