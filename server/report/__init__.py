"""A run as one page to keep: facts from its folder, figures from the facts, and the page around them."""
