"""Notes: source tables in, canonical Parquet tables out."""
