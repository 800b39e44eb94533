"""Where rows come from: csv and Parquet files, databases; every value as text."""
