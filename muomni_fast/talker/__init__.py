"""The Talker as a drop-in."""
