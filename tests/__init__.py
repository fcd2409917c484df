"""A package, so that spawned processes find functions of test files under the names that pytest gives to these."""
