"""How networks are spread over workers: torch (DDP) and DeepSpeed (ZeRO 0-3)."""
