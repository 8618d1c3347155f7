"""The table store: every stream and query result as a table."""
