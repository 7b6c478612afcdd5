"""Values -> words for people (`words`) and documents for programs (`documents`). Nothing else prints."""
