"""What models are on disk: our folders, transformers' GPT-2, nanoGPT's checkpoints; as config and state dict."""
