"""Files of LoRA and similar adapters."""
