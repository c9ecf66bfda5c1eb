"""The law wing: run folders → tables, laws and figures. It knows no torch."""
