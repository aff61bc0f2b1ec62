"""Controls of structure: texts that match a regular expression, a JSON schema or one of some choices."""
