"""From the reference's dicts to token ids and positions: typed inputs, prompts, tokens, and how long all of it is."""
