"""The brain's rules, one a module: each reads the picture and yields actions, most urgent first."""
