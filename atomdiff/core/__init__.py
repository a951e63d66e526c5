"""The method: atoms, maps and blocks, and the layers that carry them. Plain torch, for any `nn.Module`."""
