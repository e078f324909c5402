"""Tables and figures of papers as files: a TOML spec → cells → shards that are computed once → one table."""
