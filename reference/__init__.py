"""The PyTorch side: diffusers' Qwen-Image, with the toolkit's checkpoint names, from outside."""
