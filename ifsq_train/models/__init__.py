"""Networks in plain torch; quantizers in `quantizers`.

No configuration, no files of ours, no engine.
"""
