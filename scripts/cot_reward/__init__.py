"""What the stage scripts share; each module is one room of the house (README.md, "Layout")."""
