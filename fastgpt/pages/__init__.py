"""Pages that a browser opens from a file, offline: text, tables that sort, charts, what they were made of."""
