"""What to compile and on which samples: recipes from TOML, their data, their drafts."""
