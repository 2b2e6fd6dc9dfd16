"""Media: paths inside their roots, images as the model sees them, and what a request holds."""
