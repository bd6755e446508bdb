"""What is drawn and how: Vega-Lite specifications, colours, still pictures."""
