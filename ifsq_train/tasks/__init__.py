"""What one training step computes: tokenizer, autoregressive and diffusion tasks.

The loop around it is `ifsq_train.train`.
"""
