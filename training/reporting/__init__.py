"""Results, tables, figures and pages that every wing uses."""
