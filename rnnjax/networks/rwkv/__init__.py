"""The layers of RWKV-6 and RWKV-7: time mixing, channel mixing, and the blocks that are made of them."""
