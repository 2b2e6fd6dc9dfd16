"""What several test files share: builders of rows and texts, servers, models, environments."""
