"""Audio files and log-mels."""
