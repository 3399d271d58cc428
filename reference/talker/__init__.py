"""The Talker: text in, codes out."""
