"""The report of a comparison: recommendation, tables and plots, and the templates that lay them out."""
